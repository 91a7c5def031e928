#pragma once
/// @file
/// Experts at another width than the layer's: projections into and out of a latent space.

#include "moe/experts/ffn.hpp"

MOE_NAMESPACE_BEGIN

struct NoNorm {};
/// u (1 + w) with u = v / rms(v): the weight is kept minus one.
struct OffsetRmsNorm {};

/// Experts work on v = norm(W_in x) of the given width, and W_out brings their weighted sum back (Nemotron-H:
/// fc1_latent_proj, fc2_latent_proj; Muse Spark, with a norm). Router and branches see x.
template <class Norm = NoNorm>
struct Latent {
  using policy = kind::latent;
  static constexpr bool normed = std::is_same_v<Norm, OffsetRmsNorm>;
  Index width = 0;        ///< L
  double epsilon = 1e-6;  ///< of the norm

  template <class T, class Space>
  struct Parameters {
    Matrix<T, Space> in;    ///< (L, H)
    Matrix<T, Space> out;   ///< (H, L)
    Vector<T, Space> norm;  ///< (L), 0 at the start, where normed
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("in_proj.weight", same.in...);
      f("out_proj.weight", same.out...);
      if constexpr (normed) f("norm.weight", same.norm...);
    }
  };
  template <class T, class Space>
  struct Saved {
    Matrix<T, Space> projected, normed;  ///< (T, L) before and after the norm; one array where there is none
    Matrix<T, Space> sum;                ///< (T, L) the experts' weighted sum
  };

  template <class T, class Space>
  Parameters<T, Space> parameters(const ExpertShape& shape) const {
    detail::require<ConfigError>(width > 0, "moe::Latent: the width is ", width,
                                 ". Give the layer Latent<>{.width = L}.");
    Parameters<T, Space> p{Matrix<T, Space>("moe::latent.in", width, shape.hidden),
                           Matrix<T, Space>("moe::latent.out", shape.hidden, width),
                           {}};
    if constexpr (normed) p.norm = Vector<T, Space>("moe::latent.norm", width);
    return p;
  }

  /// x (T, H) to what the experts see, saved.normed (T, L).
  template <class T, class Space>
  void enter(Context<Space>& ctx, const Matrix<const T, Space>& x, const Parameters<T, Space>& p,
             Saved<T, Space>& saved) const;
  /// saved.sum (T, L) to y (T, H).
  template <class T, class Space>
  void leave(Context<Space>& ctx, const Parameters<T, Space>& p, const Saved<T, Space>& saved,
             const Matrix<T, Space>& y) const {
    kernels::dense_forward<T, Space>(ctx.space, Matrix<const T, Space>(saved.sum), Matrix<const T, Space>(p.out), y);
  }
  /// dy (T, H) to dsum (T, L).
  template <class T, class Space>
  void leave_backward(Context<Space>& ctx, const Matrix<const T, Space>& dy, const Parameters<T, Space>& p,
                      const Saved<T, Space>& saved, const Matrix<T, Space>& dsum,
                      Parameters<T, Space>& gradients) const {
    kernels::dense_backward_rows<T, Space>(ctx.space, dy, Matrix<const T, Space>(p.out), dsum, false);
    kernels::dense_backward_weight<T, Space>(ctx.space, dy, Matrix<const T, Space>(saved.sum), gradients.out);
  }
  /// dnormed (T, L), used up, to dx (T, H), overwritten.
  template <class T, class Space>
  void enter_backward(Context<Space>& ctx, const Matrix<T, Space>& dnormed, const Matrix<const T, Space>& x,
                      const Parameters<T, Space>& p, const Saved<T, Space>& saved, const Matrix<T, Space>& dx,
                      Parameters<T, Space>& gradients) const;
};

namespace detail {

/// to = from / rms(from) * (1 + weight).
template <class T, class Space>
struct OffsetNormRow {
  using Real = RouterReal<T>;
  Matrix<T, Space> from, to;
  Vector<T, Space> weight;
  Real epsilon;
  KOKKOS_FUNCTION Real inverse(Index t, const Team& team) const {
    const Real squares =
        team.sum<Real>(Index(from.extent(1)), [&](Index i) { return Real(from(t, i)) * Real(from(t, i)); });
    return Real(1) / Kokkos::sqrt(squares / Real(from.extent(1)) + epsilon);
  }
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Real r = inverse(t, team);
    team.each(Index(from.extent(1)),
              [&](Index i) { to(t, i) = T(Real(from(t, i)) * r * (Real(1) + Real(weight(i)))); });
  }
};

/// gradient of (1 + weight)'s scale into `parts`, and d in place from that of `to` to that of `from`.
template <class T, class Space>
struct OffsetNormGradientRow {
  using Real = RouterReal<T>;
  OffsetNormRow<T, Space> forward;
  Matrix<T, Space> d;
  Matrix<Real, Space> parts;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Index n = d.extent(1);
    const Real r = forward.inverse(t, team);
    Real dot = 0;  // of this lane
    team.each(n, [&](Index i) {
      const Real u = Real(forward.from(t, i)) * r, g = Real(d(t, i));
      parts(t, i) = u * g;
      dot += u * g * (Real(1) + Real(forward.weight(i)));
    });
    dot = team.total_of(dot);
    team.each(n, [&](Index i) {
      const Real u = Real(forward.from(t, i)) * r, g = Real(d(t, i)) * (Real(1) + Real(forward.weight(i)));
      d(t, i) = T(r * (g - u * dot / Real(n)));
    });
  }
};

}  // namespace detail

template <class Norm>
template <class T, class Space>
void Latent<Norm>::enter(Context<Space>& ctx, const Matrix<const T, Space>& x, const Parameters<T, Space>& p,
                         Saved<T, Space>& saved) const {
  const Index tokens = x.extent(0), l = p.in.extent(0);
  detail::shape(saved.projected, "moe::latent.projected", tokens, l);
  detail::shape(saved.sum, "moe::latent.sum", tokens, l);
  kernels::dense_forward<T, Space>(ctx.space, x, Matrix<const T, Space>(p.in), saved.projected);
  if constexpr (normed) {
    detail::shape(saved.normed, "moe::latent.normed", tokens, l);
    detail::each_row(ctx.space, "moe::Latent::norm", tokens,
                     detail::OffsetNormRow<T, Space>{saved.projected, saved.normed, p.norm, RouterReal<T>(epsilon)});
  } else {
    saved.normed = saved.projected;
  }
}

template <class Norm>
template <class T, class Space>
void Latent<Norm>::enter_backward(Context<Space>& ctx, const Matrix<T, Space>& dnormed, const Matrix<const T, Space>& x,
                                  const Parameters<T, Space>& p, const Saved<T, Space>& saved,
                                  const Matrix<T, Space>& dx, Parameters<T, Space>& gradients) const {
  const Index tokens = x.extent(0), l = p.in.extent(0);
  if constexpr (normed) {
    typename Context<Space>::Scratch scratch(ctx);
    auto parts = scratch.template matrix<RouterReal<T>>(tokens, l);
    const detail::OffsetNormRow<T, Space> norm{saved.projected, saved.normed, p.norm, RouterReal<T>(epsilon)};
    detail::each_row(ctx.space, "moe::Latent::norm_backward", tokens,
                     detail::OffsetNormGradientRow<T, Space>{norm, dnormed, parts});
    Kokkos::parallel_for("moe::Latent::norm_weight", detail::Range<Space>(ctx.space, 0, l),
                         detail::SumRows<RouterReal<T>, T, Space>{parts, gradients.norm});
  }
  using M = Matrix<const T, Space>;
  kernels::dense_backward_rows<T, Space>(ctx.space, M(dnormed), M(p.in), dx, false);
  kernels::dense_backward_weight<T, Space>(ctx.space, M(dnormed), x, gradients.in);
}

MOE_NAMESPACE_END
