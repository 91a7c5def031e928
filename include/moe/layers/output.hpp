#pragma once
/// @file
/// What happens to a layer's output behind the sum over experts: scales, a bias, a norm.
///
/// An output policy is a struct with `using policy = moe::kind::output;`, `static constexpr const char* name`,
/// `static constexpr bool routed` (true: it acts on the routed experts' sum alone, before branches are added),
/// `Parameters`, `Saved`, `parameters(ExpertShape)`, and
///
///     forward(ctx, batch, parameters, y, saved) const               // y (T, H) in place
///     backward(ctx, batch, parameters, saved, dy, gradients) const  // dy (T, H) in place; adds into gradients

#include "moe/experts/ffn.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

template <class T, class Space>
struct ScaleAll {
  Matrix<T, Space> y;
  RouterReal<T> factor;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    team.each(Index(y.extent(1)), [&](Index h) { y(t, h) = T(RouterReal<T>(y(t, h)) * factor); });
  }
};

}  // namespace detail

/// y = factor * y, for the routed experts alone (Laguna, MiniMax-M3 and Step 3.7 scale after aggregation) or for the
/// whole output (Cohere 2 averages routed and shared parts: 1/2).
template <bool of_routed = true>
struct OutputScale {
  using policy = kind::output;
  static constexpr const char* name = "";
  static constexpr bool routed = of_routed;
  double factor = 1;

  template <class, class>
  using Parameters = NoParameters;
  template <class, class>
  struct Saved {};
  template <class T, class Space>
  NoParameters parameters(const ExpertShape&) const {
    return {};
  }
  template <class T, class Space, class S>
  void forward(Context<Space>& ctx, const Batch<T, Space>&, const NoParameters&, const Matrix<T, Space>& y, S&) const {
    scale(ctx, y);
  }
  template <class T, class Space, class S>
  void backward(Context<Space>& ctx, const Batch<T, Space>&, const NoParameters&, const S&, const Matrix<T, Space>& dy,
                NoParameters&) const {
    scale(ctx, dy);
  }

 private:
  template <class T, class Space>
  void scale(Context<Space>& ctx, const Matrix<T, Space>& y) const {
    detail::each_wide_row(ctx.space, "moe::OutputScale", Index(y.extent(0)), Index(y.extent(1)),
                          detail::ScaleAll<T, Space>{y, RouterReal<T>(factor)});
  }
};
using RoutedScale = OutputScale<true>;
using LayerScale = OutputScale<false>;

namespace detail {

template <class T, class Space>
struct AddOutputBias {
  Vector<T, Space> bias;
  Vector<const std::uint8_t, Space> mask;
  Matrix<T, Space> y;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    if (is_padding<Space>(mask, t)) return;
    team.each(Index(y.extent(1)), [&](Index h) { y(t, h) += bias(h); });
  }
};

template <class T, class Space>
struct OutputBiasGradient {
  Matrix<T, Space> dy;
  Vector<const std::uint8_t, Space> mask;
  Vector<T, Space> gradient;
  KOKKOS_FUNCTION void operator()(Index h) const {
    RouterReal<T> sum = 0;
    for (Index t = 0; t < Index(dy.extent(0)); ++t) sum += is_padding<Space>(mask, t) ? 0 : RouterReal<T>(dy(t, h));
    gradient(h) = T(RouterReal<T>(gradient(h)) + sum);
  }
};

}  // namespace detail

/// y = y + b, one bias for the layer (JetMoE); padding gets none.
struct OutputBias {
  using policy = kind::output;
  static constexpr const char* name = "output.";
  static constexpr bool routed = false;

  template <class T, class Space>
  struct Parameters {
    Vector<T, Space> bias;  ///< (H), 0 at the start
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("bias", same.bias...);
    }
  };
  template <class, class>
  struct Saved {};
  template <class T, class Space>
  Parameters<T, Space> parameters(const ExpertShape& shape) const {
    return {Vector<T, Space>("moe::output.bias", shape.hidden)};
  }
  template <class T, class Space, class S>
  void forward(Context<Space>& ctx, const Batch<T, Space>& batch, const Parameters<T, Space>& p,
               const Matrix<T, Space>& y, S&) const {
    detail::each_wide_row(ctx.space, "moe::OutputBias", Index(y.extent(0)), Index(y.extent(1)),
                          detail::AddOutputBias<T, Space>{p.bias, batch.mask, y});
  }
  template <class T, class Space, class S>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Parameters<T, Space>& p, const S&,
                const Matrix<T, Space>& dy, Parameters<T, Space>& gradients) const {
    Kokkos::parallel_for("moe::OutputBias", detail::Range<Space>(ctx.space, 0, Index(p.bias.size())),
                         detail::OutputBiasGradient<T, Space>{dy, batch.mask, gradients.bias});
  }
};

namespace detail {

template <class T, class Space>
struct OutputNormRow {
  using Real = RouterReal<T>;
  Vector<T, Space> weight;
  Real epsilon;
  Matrix<T, Space> y, input;
  Vector<Real, Space> inverse;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Index width = y.extent(1);
    const Real squares = team.sum<Real>(width, [&](Index h) { return Real(y(t, h)) * Real(y(t, h)); });
    const Real factor = Real(1) / Kokkos::sqrt(squares / Real(width) + epsilon);
    team.single([&] { inverse(t) = factor; });
    team.each(width, [&](Index h) {
      input(t, h) = y(t, h);
      y(t, h) = T(Real(y(t, h)) * factor * Real(weight(h)));
    });
  }
};

template <class T, class Space>
struct OutputNormGradientRow {
  using Real = RouterReal<T>;
  Vector<T, Space> weight;
  Matrix<T, Space> input, dy;
  Vector<Real, Space> inverse;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Index width = dy.extent(1);
    const Real dot = team.sum<Real>(
        width, [&](Index h) { return Real(input(t, h)) * inverse(t) * Real(dy(t, h)) * Real(weight(h)); });
    team.each(width, [&](Index h) {
      const Real u = Real(input(t, h)) * inverse(t);
      dy(t, h) = T(inverse(t) * (Real(dy(t, h)) * Real(weight(h)) - u * dot / Real(width)));
    });
  }
};

template <class T, class Space>
struct OutputNormWeightGradient {
  using Real = RouterReal<T>;
  Matrix<T, Space> input, dy;
  Vector<Real, Space> inverse;
  Vector<T, Space> gradient;
  KOKKOS_FUNCTION void operator()(Index h) const {
    Real sum = 0;
    for (Index t = 0; t < Index(dy.extent(0)); ++t) sum += Real(input(t, h)) * inverse(t) * Real(dy(t, h));
    gradient(h) = T(Real(gradient(h)) + sum);
  }
};

}  // namespace detail

/// RMSNorm of the layer's output (A.X-K1).
struct OutputNorm {
  using policy = kind::output;
  static constexpr const char* name = "output_norm.";
  static constexpr bool routed = false;
  double epsilon = 1e-6;

  template <class T, class Space>
  struct Parameters {
    Vector<T, Space> weight;  ///< (H), 1 at the start
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("weight", same.weight...);
    }
  };
  template <class T, class Space>
  struct Saved {
    Matrix<T, Space> input;                ///< (T, H)
    Vector<RouterReal<T>, Space> inverse;  ///< (T) 1 / rms
  };
  template <class T, class Space>
  Parameters<T, Space> parameters(const ExpertShape& shape) const {
    Vector<T, Space> ones("moe::output_norm.weight", shape.hidden);
    Kokkos::deep_copy(ones, T(1));
    return {ones};
  }
  template <class T, class Space>
  void forward(Context<Space>& ctx, const Batch<T, Space>&, const Parameters<T, Space>& p, const Matrix<T, Space>& y,
               Saved<T, Space>& saved) const {
    detail::shape(saved.input, "moe::output_norm.input", y.extent(0), y.extent(1));
    detail::shape(saved.inverse, "moe::output_norm.inverse", y.extent(0));
    detail::each_row(ctx.space, "moe::OutputNorm", Index(y.extent(0)),
                     detail::OutputNormRow<T, Space>{p.weight, RouterReal<T>(epsilon), y, saved.input, saved.inverse});
  }
  template <class T, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>&, const Parameters<T, Space>& p,
                const Saved<T, Space>& saved, const Matrix<T, Space>& dy, Parameters<T, Space>& gradients) const {
    using Range = detail::Range<Space>;
    Kokkos::parallel_for("moe::OutputNorm::weight", Range(ctx.space, 0, Index(p.weight.size())),
                         detail::OutputNormWeightGradient<T, Space>{saved.input, dy, saved.inverse, gradients.weight});
    detail::each_row(ctx.space, "moe::OutputNorm::backward", Index(dy.extent(0)),
                     detail::OutputNormGradientRow<T, Space>{p.weight, saved.input, dy, saved.inverse});
  }
};

MOE_NAMESPACE_END
