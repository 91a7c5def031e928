#pragma once
/// @file
/// Logit sources: tokens become logits.
///
/// A logit source is a struct with `using policy = moe::kind::logits;`, `Parameters<Real, Space>`,
/// `parameters(shape)`, `forward` and `backward` as here. Its arithmetic is the router's: f32 or wider.

#include "moe/core/parameter.hpp"
#include "moe/kernels/gemm.hpp"
#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// z = x W^T, without bias: the gate of nearly every published system.
struct LinearLogits {
  using policy = kind::logits;

  template <class Real, class Space>
  struct Parameters {
    Matrix<Real, Space> weight;  ///< (E, H')
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("weight", same.weight...);
    }
  };

  template <class Real, class Space>
  Parameters<Real, Space> parameters(const RouterShape& shape) const {
    return {Matrix<Real, Space>("moe::router.weight", shape.experts, shape.hidden)};
  }

  /// x (T, H') to logits (T, E).
  template <class Real, class Space>
  void forward(Context<Space>& ctx, const Matrix<const Real, Space>& x, const Parameters<Real, Space>& parameters,
               const Matrix<Real, Space>& logits) const {
    kernels::dense_forward<Real, Space>(ctx.space, x, Matrix<const Real, Space>(parameters.weight), logits);
  }

  /// dlogits (T, E) to dx (T, H'), which is overwritten; adds into gradients.
  template <class Real, class Space>
  void backward(Context<Space>& ctx, const Matrix<const Real, Space>& dlogits, const Matrix<const Real, Space>& x,
                const Parameters<Real, Space>& parameters, const Matrix<Real, Space>& dx,
                Parameters<Real, Space>& gradients) const {
    kernels::dense_backward_rows<Real, Space>(ctx.space, dlogits, Matrix<const Real, Space>(parameters.weight), dx,
                                              false);
    kernels::dense_backward_weight<Real, Space>(ctx.space, dlogits, x, gradients.weight);
  }
};

MOE_NAMESPACE_END
