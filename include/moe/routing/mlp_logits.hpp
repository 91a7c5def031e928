#pragma once
/// @file
/// Logits by a small network.

#include "moe/core/activation.hpp"
#include "moe/routing/linear_logits.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// after = f(before), and gradient *= f'(before) where there is one.
template <class Activation, class Real, class Space>
struct ActivateLogits {
  Matrix<Real, Space> before, after, gradient;
  KOKKOS_FUNCTION void operator()(Index t) const {
    for (Index i = 0; i < Index(before.extent(1)); ++i) {
      const Real z = before(t, i);
      if (gradient.data() != nullptr) gradient(t, i) *= Activation::derivative(z);
      after(t, i) = Activation::value(z);
    }
  }
};

}  // namespace detail

/// z = W_2 f(W_1 x): a router of two layers (MoEfication's with Tanh; ZAYA's with GELU; a projection to fewer
/// dimensions with Linear).
template <class Activation = ReLU>
struct MLPLogits {
  using policy = kind::logits;
  static_assert(!Activation::gated, "moe::MLPLogits<Activation>: the activation must not be gated.");
  Index width = 0;  ///< M, of the hidden layer; 0: as wide as the input

  template <class Real, class Space>
  struct Parameters {
    Matrix<Real, Space> first;   ///< (M, H')
    Matrix<Real, Space> weight;  ///< (E, M)
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("first.weight", same.first...);
      f("weight", same.weight...);
    }
  };

  template <class Real, class Space>
  Parameters<Real, Space> parameters(const RouterShape& shape) const {
    const Index m = width > 0 ? width : shape.hidden;
    return {Matrix<Real, Space>("moe::router.first.weight", m, shape.hidden),
            Matrix<Real, Space>("moe::router.weight", shape.experts, m)};
  }

  template <class Real, class Space>
  void forward(Context<Space>& ctx, const Matrix<const Real, Space>& x, const Parameters<Real, Space>& p,
               const Matrix<Real, Space>& logits) const {
    using M = Matrix<const Real, Space>;
    typename Context<Space>::Scratch scratch(ctx);
    auto inner = scratch.template matrix<Real>(x.extent(0), p.first.extent(0));
    kernels::dense_forward<Real, Space>(ctx.space, x, M(p.first), inner);
    run(ctx, inner, Activate<Real, Space>{inner, inner, {}});
    kernels::dense_forward<Real, Space>(ctx.space, M(inner), M(p.weight), logits);
  }

  template <class Real, class Space>
  void backward(Context<Space>& ctx, const Matrix<const Real, Space>& dlogits, const Matrix<const Real, Space>& x,
                const Parameters<Real, Space>& p, const Matrix<Real, Space>& dx,
                Parameters<Real, Space>& gradients) const {
    using M = Matrix<const Real, Space>;
    typename Context<Space>::Scratch scratch(ctx);
    const Index tokens = x.extent(0), m = p.first.extent(0);
    auto before = scratch.template matrix<Real>(tokens, m), inner = scratch.template matrix<Real>(tokens, m),
         dinner = scratch.template matrix<Real>(tokens, m);
    kernels::dense_forward<Real, Space>(ctx.space, x, M(p.first), before);
    kernels::dense_backward_rows<Real, Space>(ctx.space, dlogits, M(p.weight), dinner, false);
    run(ctx, inner, Activate<Real, Space>{before, inner, dinner});
    kernels::dense_backward_weight<Real, Space>(ctx.space, dlogits, M(inner), gradients.weight);
    kernels::dense_backward_rows<Real, Space>(ctx.space, M(dinner), M(p.first), dx, false);
    kernels::dense_backward_weight<Real, Space>(ctx.space, M(dinner), x, gradients.first);
  }

 private:
  template <class Real, class Space>
  using Activate = detail::ActivateLogits<Activation, Real, Space>;
  template <class Real, class Space>
  static void run(Context<Space>& ctx, const Matrix<Real, Space>& rows, const Activate<Real, Space>& functor) {
    Kokkos::parallel_for("moe::MLPLogits", detail::Range<Space>(ctx.space, 0, Index(rows.extent(0))), functor);
  }
};

MOE_NAMESPACE_END
