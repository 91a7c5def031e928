#pragma once
/// @file
/// Logits with trainable noise (Shazeer et al. 2017, "Outrageously large neural networks", eq. 3 to 5).

#include "moe/routing/linear_logits.hpp"

MOE_NAMESPACE_BEGIN

/// z = x W^T + N(0, 1) * (softplus(x W_noise^T) + minimum) while training, else x W^T. The clean logits and the noise's
/// deviation stay in the routing, for LoadLoss. The paper starts both weights at zero: see
/// start_router_at_zero in models/classical.hpp.
struct NoisyLogits {
  using policy = kind::logits;
  double minimum = 1e-2;  ///< of the deviation

  template <class Real, class Space>
  struct Parameters {
    Matrix<Real, Space> weight;        ///< (E, H')
    Matrix<Real, Space> noise_weight;  ///< (E, H')
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("weight", same.weight...);
      f("noise_weight", same.noise_weight...);
    }
  };

  template <class Real, class Space>
  Parameters<Real, Space> parameters(const RouterShape& shape) const {
    return {Matrix<Real, Space>("moe::router.weight", shape.experts, shape.hidden),
            Matrix<Real, Space>("moe::router.noise_weight", shape.experts, shape.hidden)};
  }

  template <class T, class Real, class Space>
  void forward(Context<Space>& ctx, const Batch<T, Space>& batch, const detail::RowDraws<Space>& draws,
               const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
               Routing<Real, Space>& routing) const;

  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const detail::RowDraws<Space>& draws,
                const Routing<Real, Space>& routing, const RoutingGradients<Real, Space>& of,
                const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p, const Matrix<Real, Space>& dx,
                Parameters<Real, Space>& gradients) const;
};

namespace detail {

/// deviation = softplus + minimum; logits = clean + noise * deviation.
template <class Real, class Space>
struct AddNoiseRow {
  Matrix<Real, Space> clean, deviation, logits;
  RowDraws<Space> draws;
  double minimum;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const RowRandom random = draws.row(t, Purpose::noise);
    for (Index e = 0; e < Index(logits.extent(1)); ++e) {
      const Real z = deviation(t, e);
      deviation(t, e) =
          (z > Real(0) ? z + Kokkos::log1p(Kokkos::exp(-z)) : Kokkos::log1p(Kokkos::exp(z))) + Real(minimum);
      logits(t, e) = clean(t, e) + (random.active ? random.normal<Real>(e) * deviation(t, e) : Real(0));
    }
  }
};

/// dclean += dlogits; draw = (ddeviation + noise * dlogits) * slope of softplus, which is 1 - exp(-softplus).
template <class Real, class Space>
struct NoiseGradientRow {
  Matrix<const Real, Space> dlogits, dclean, ddeviation, deviation;
  Matrix<Real, Space> to_clean, to_raw;
  RowDraws<Space> draws;
  double minimum;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const RowRandom random = draws.row(t, Purpose::noise);
    for (Index e = 0; e < Index(to_raw.extent(1)); ++e) {
      const Real noise = random.active ? random.normal<Real>(e) : Real(0);
      to_clean(t, e) = dlogits(t, e) + dclean(t, e);
      to_raw(t, e) = (ddeviation(t, e) + noise * dlogits(t, e)) * -Kokkos::expm1(-(deviation(t, e) - Real(minimum)));
    }
  }
};

}  // namespace detail

template <class T, class Real, class Space>
void NoisyLogits::forward(Context<Space>& ctx, const Batch<T, Space>& batch, const detail::RowDraws<Space>& draws,
                          const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
                          Routing<Real, Space>& routing) const {
  const Index tokens = batch.tokens(), experts = p.weight.extent(0);
  detail::shape(routing.clean_logits, "moe::clean_logits", tokens, experts);
  detail::shape(routing.deviation, "moe::deviation", tokens, experts);
  kernels::dense_forward<Real, Space>(ctx.space, x, Matrix<const Real, Space>(p.weight), routing.clean_logits);
  kernels::dense_forward<Real, Space>(ctx.space, x, Matrix<const Real, Space>(p.noise_weight), routing.deviation);
  Kokkos::parallel_for(
      "moe::NoisyLogits", detail::Range<Space>(ctx.space, 0, tokens),
      detail::AddNoiseRow<Real, Space>{routing.clean_logits, routing.deviation, routing.logits, draws, minimum});
}

template <class T, class Real, class Space>
void NoisyLogits::backward(Context<Space>& ctx, const Batch<T, Space>& batch, const detail::RowDraws<Space>& draws,
                           const Routing<Real, Space>& routing, const RoutingGradients<Real, Space>& of,
                           const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
                           const Matrix<Real, Space>& dx, Parameters<Real, Space>& gradients) const {
  using M = Matrix<const Real, Space>;
  typename Context<Space>::Scratch scratch(ctx);
  const Index tokens = batch.tokens(), experts = p.weight.extent(0);
  auto to_clean = scratch.template matrix<Real>(tokens, experts),
       to_raw = scratch.template matrix<Real>(tokens, experts);
  Kokkos::parallel_for("moe::NoisyLogits::backward", detail::Range<Space>(ctx.space, 0, tokens),
                       detail::NoiseGradientRow<Real, Space>{of.dlogits, of.dclean, of.ddeviation, routing.deviation,
                                                             to_clean, to_raw, draws, minimum});
  kernels::dense_backward_rows<Real, Space>(ctx.space, M(to_clean), M(p.weight), dx, false);
  kernels::dense_backward_rows<Real, Space>(ctx.space, M(to_raw), M(p.noise_weight), dx, true);
  kernels::dense_backward_weight<Real, Space>(ctx.space, M(to_clean), x, gradients.weight);
  kernels::dense_backward_weight<Real, Space>(ctx.space, M(to_raw), x, gradients.noise_weight);
}

MOE_NAMESPACE_END
