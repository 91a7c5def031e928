#pragma once
/// @file
/// Logits of normalised inputs: cosine routers, and RMSNorm before any router.

#include "moe/routing/linear_logits.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// to = from / sqrt(mean(from^2) * divisor + epsilon), row by row: the unit RMS with divisor 1, the unit length with
/// divisor n.
template <class Real, class Space>
struct NormalizeRow {
  Matrix<const Real, Space> from;
  Matrix<Real, Space> to;
  Real divisor, epsilon;
  KOKKOS_FUNCTION Real inverse(Index t) const {
    const Index n = from.extent(1);
    Real squares = 0;
    for (Index i = 0; i < n; ++i) squares += from(t, i) * from(t, i);
    return Real(1) / Kokkos::sqrt(squares / Real(n) * divisor + epsilon);
  }
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Real r = inverse(t);
    for (Index i = 0; i < Index(from.extent(1)); ++i) to(t, i) = from(t, i) * r;
  }
};

/// dfrom (= or +=) the pullback of NormalizeRow: r (g - u <u, g> divisor / n).
template <class Real, class Space>
struct NormalizeGradientRow {
  NormalizeRow<Real, Space> forward;
  Matrix<const Real, Space> dto;
  Matrix<Real, Space> dfrom;
  bool add;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index n = dfrom.extent(1);
    const Real r = forward.inverse(t);
    Real dot = 0;
    for (Index i = 0; i < n; ++i) dot += forward.from(t, i) * r * dto(t, i);
    for (Index i = 0; i < n; ++i) {
      const Real u = forward.from(t, i) * r, g = r * (dto(t, i) - u * dot * forward.divisor / Real(n));
      dfrom(t, i) = add ? dfrom(t, i) + g : g;
    }
  }
};

/// rows(t, i) *= weight(i) * factor.
template <class Real, class Space>
struct ScaleColumns {
  Vector<const Real, Space> weight;
  Real factor;
  Matrix<Real, Space> rows;
  KOKKOS_FUNCTION void operator()(Index t) const {
    for (Index i = 0; i < Index(rows.extent(1)); ++i) rows(t, i) *= weight(i) * factor;
  }
};

/// gradient(i) += factor * sum of a(t, i) * b(t, i) over rows, in order.
template <class Real, class Space>
struct SumProductColumn {
  Matrix<const Real, Space> a, b;
  Real factor;
  Vector<Real, Space> gradient;
  KOKKOS_FUNCTION void operator()(Index i) const {
    Real sum = 0;
    for (Index t = 0; t < Index(a.extent(0)); ++t) sum += a(t, i) * b(t, i);
    gradient(i) += factor * sum;
  }
};

}  // namespace detail

/// z = scale * exp(temperature) * cos(x, w_e), with a trained temperature that starts at 0 (Chi et al. 2022, "On the
/// representation collapse of sparse mixture of experts", eq. 7, without its projection: see MLPLogits).
struct CosineLogits {
  using policy = kind::logits;
  double scale = 10;
  double epsilon = 1e-12;  ///< under the square root of a norm

  template <class Real, class Space>
  struct Parameters {
    Matrix<Real, Space> weight;       ///< (E, H')
    Vector<Real, Space> temperature;  ///< (1), logarithmic
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("weight", same.weight...);
      f("temperature", same.temperature...);
    }
  };

  template <class Real, class Space>
  Parameters<Real, Space> parameters(const RouterShape& shape) const {
    return {Matrix<Real, Space>("moe::router.weight", shape.experts, shape.hidden),
            Vector<Real, Space>("moe::router.temperature", 1)};
  }

  template <class Real, class Space>
  void forward(Context<Space>& ctx, const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
               const Matrix<Real, Space>& logits) const;
  template <class Real, class Space>
  void backward(Context<Space>& ctx, const Matrix<const Real, Space>& dlogits, const Matrix<const Real, Space>& x,
                const Parameters<Real, Space>& p, const Matrix<Real, Space>& dx,
                Parameters<Real, Space>& gradients) const;

 private:
  template <class Real, class Space>
  detail::NormalizeRow<Real, Space> unit(const Matrix<const Real, Space>& from, const Matrix<Real, Space>& to) const {
    return {from, to, Real(from.extent(1)), Real(epsilon)};
  }
  template <class Space, class Functor>
  static void run(Context<Space>& ctx, Index rows, const Functor& functor) {
    Kokkos::parallel_for("moe::CosineLogits", detail::Range<Space>(ctx.space, 0, rows), functor);
  }
};

namespace detail {

template <class Real, class Space>
struct Temper {
  Vector<const Real, Space> temperature;
  Real scale;
  Matrix<Real, Space> logits;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Real factor = scale * Kokkos::exp(temperature(0));
    for (Index e = 0; e < Index(logits.extent(1)); ++e) logits(t, e) *= factor;
  }
};

/// dtemperature += sum of dlogits * logits, in order; one work item.
template <class Real, class Space>
struct TemperGradient {
  Matrix<const Real, Space> dtempered, cosine;
  Vector<const Real, Space> temperature;
  Real scale;
  Vector<Real, Space> gradient;
  KOKKOS_FUNCTION void operator()(Index) const {
    Real sum = 0;
    for (Index t = 0; t < Index(cosine.extent(0)); ++t) {
      for (Index e = 0; e < Index(cosine.extent(1)); ++e) sum += dtempered(t, e) * cosine(t, e);
    }
    gradient(0) += sum * scale * Kokkos::exp(temperature(0));
  }
};

}  // namespace detail

template <class Real, class Space>
void CosineLogits::forward(Context<Space>& ctx, const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
                           const Matrix<Real, Space>& logits) const {
  using M = Matrix<const Real, Space>;
  typename Context<Space>::Scratch scratch(ctx);
  auto ux = scratch.template matrix<Real>(x.extent(0), x.extent(1));
  auto uw = scratch.template matrix<Real>(p.weight.extent(0), p.weight.extent(1));
  run(ctx, Index(ux.extent(0)), unit<Real, Space>(x, ux));
  run(ctx, Index(uw.extent(0)), unit<Real, Space>(M(p.weight), uw));
  kernels::dense_forward<Real, Space>(ctx.space, M(ux), M(uw), logits);
  run(ctx, Index(logits.extent(0)), detail::Temper<Real, Space>{p.temperature, Real(scale), logits});
}

template <class Real, class Space>
void CosineLogits::backward(Context<Space>& ctx, const Matrix<const Real, Space>& dlogits,
                            const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
                            const Matrix<Real, Space>& dx, Parameters<Real, Space>& gradients) const {
  using M = Matrix<const Real, Space>;
  typename Context<Space>::Scratch scratch(ctx);
  const Index tokens = x.extent(0), hidden = x.extent(1), experts = p.weight.extent(0);
  auto ux = scratch.template matrix<Real>(tokens, hidden), dux = scratch.template matrix<Real>(tokens, hidden);
  auto uw = scratch.template matrix<Real>(experts, hidden), duw = scratch.template matrix<Real>(experts, hidden);
  auto cosine = scratch.template matrix<Real>(tokens, experts),
       dcosine = scratch.template matrix<Real>(tokens, experts);
  run(ctx, tokens, unit<Real, Space>(x, ux));
  run(ctx, experts, unit<Real, Space>(M(p.weight), uw));
  kernels::dense_forward<Real, Space>(ctx.space, M(ux), M(uw), cosine);
  run(ctx, 1, detail::TemperGradient<Real, Space>{dlogits, cosine, p.temperature, Real(scale), gradients.temperature});
  run(ctx, tokens, detail::CopyRow<Real, Space>{dlogits, dcosine});
  run(ctx, tokens, detail::Temper<Real, Space>{p.temperature, Real(scale), dcosine});
  kernels::dense_backward_rows<Real, Space>(ctx.space, M(dcosine), M(uw), dux, false);
  detail::fill(ctx.space, duw, Real(0));
  kernels::dense_backward_weight<Real, Space>(ctx.space, M(dcosine), M(ux), duw);
  run(ctx, tokens, detail::NormalizeGradientRow<Real, Space>{unit<Real, Space>(x, ux), dux, dx, false});
  run(ctx, experts,
      detail::NormalizeGradientRow<Real, Space>{unit<Real, Space>(M(p.weight), uw), duw, gradients.weight, true});
}

/// The router's input at unit root mean square, times a trained vector and 1 / sqrt(H'), before the logits of `Inner`
/// (Gemma 4's router).
template <class Inner = LinearLogits>
struct NormalizedInput {
  using policy = kind::logits;
  double epsilon = 1e-6;
  Inner inner{};

  template <class Real, class Space>
  struct Parameters : Inner::template Parameters<Real, Space> {
    Vector<Real, Space> input_scale;  ///< (H'), 1 at the start
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      Inner::template Parameters<Real, Space>::visit(f, same...);
      f("input_scale", same.input_scale...);
    }
  };

  template <class Real, class Space>
  Parameters<Real, Space> parameters(const RouterShape& shape) const {
    Vector<Real, Space> ones("moe::router.input_scale", shape.hidden);
    Kokkos::deep_copy(ones, Real(1));
    return {inner.template parameters<Real, Space>(shape), ones};
  }

  template <class Real, class Space>
  void forward(Context<Space>& ctx, const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
               const Matrix<Real, Space>& logits) const {
    typename Context<Space>::Scratch scratch(ctx);
    auto normed = scratch.template matrix<Real>(x.extent(0), x.extent(1));
    normalize(ctx, x, p, normed);
    inner.forward(ctx, Matrix<const Real, Space>(normed), inner_of(p), logits);
  }

  template <class Real, class Space>
  void backward(Context<Space>& ctx, const Matrix<const Real, Space>& dlogits, const Matrix<const Real, Space>& x,
                const Parameters<Real, Space>& p, const Matrix<Real, Space>& dx,
                Parameters<Real, Space>& gradients) const {
    using M = Matrix<const Real, Space>;
    typename Context<Space>::Scratch scratch(ctx);
    const Index tokens = x.extent(0), hidden = x.extent(1);
    const Real factor = Real(1) / Kokkos::sqrt(Real(hidden));
    auto unit = scratch.template matrix<Real>(tokens, hidden), normed = scratch.template matrix<Real>(tokens, hidden),
         dnormed = scratch.template matrix<Real>(tokens, hidden);
    const detail::NormalizeRow<Real, Space> norm{x, unit, Real(1), Real(epsilon)};
    run(ctx, tokens, norm);
    normalize(ctx, x, p, normed);
    inner.backward(ctx, dlogits, M(normed), inner_of(p), dnormed,
                   static_cast<typename Inner::template Parameters<Real, Space>&>(gradients));
    run(ctx, hidden, detail::SumProductColumn<Real, Space>{dnormed, unit, factor, gradients.input_scale});
    run(ctx, tokens, detail::ScaleColumns<Real, Space>{p.input_scale, factor, dnormed});
    run(ctx, tokens, detail::NormalizeGradientRow<Real, Space>{norm, dnormed, dx, false});
  }

 private:
  template <class Real, class Space>
  static const typename Inner::template Parameters<Real, Space>& inner_of(const Parameters<Real, Space>& p) {
    return p;
  }
  template <class Real, class Space>
  void normalize(Context<Space>& ctx, const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
                 const Matrix<Real, Space>& normed) const {
    run(ctx, Index(x.extent(0)), detail::NormalizeRow<Real, Space>{x, normed, Real(1), Real(epsilon)});
    run(ctx, Index(x.extent(0)),
        detail::ScaleColumns<Real, Space>{p.input_scale, Real(1) / Kokkos::sqrt(Real(x.extent(1))), normed});
  }
  template <class Space, class Functor>
  static void run(Context<Space>& ctx, Index rows, const Functor& functor) {
    Kokkos::parallel_for("moe::NormalizedInput", detail::Range<Space>(ctx.space, 0, rows), functor);
  }
};

MOE_NAMESPACE_END
