#pragma once
/// @file
/// Which tokens a mixture of depths takes: the rules, the predictor that makes one of them causal, and a count of how
/// often they agree.

#include "moe/balance/choice_cross_entropy.hpp"
#include "moe/core/activation.hpp"
#include "moe/core/each_row.hpp"
#include "moe/kernels/gemm.hpp"
#include "moe/routing/linear_logits.hpp"

MOE_NAMESPACE_BEGIN

/// Which rule says that a token goes through the block.
enum class DepthChoice {
  top_k,      ///< the sequence's best logits r. Looks ahead: a token's fate depends on later tokens
  router,     ///< r > 0, which ChoiceCrossEntropy trains
  predictor,  ///< the DepthPredictor's own logit > 0
};

/// A small network that foretells from a token alone whether it will be among its sequence's best (Raposo et al. 2024,
/// section 3.5): p = w_2 f(W_1 x + b_1) + b_2, f = ReLU, trained by its own cross entropy. It sees what the router sees
/// and sends no gradient there.
struct DepthPredictor {
  using policy = kind::predictor;
  Index width = 0;         ///< M, of the hidden layer; 0: a quarter of the input's, at least 1
  double coefficient = 1;  ///< of its loss

  template <class Real, class Space>
  struct Parameters {
    Matrix<Real, Space> first;       ///< (M, H')
    Vector<Real, Space> first_bias;  ///< (M), 0 at the start
    Matrix<Real, Space> weight;      ///< (1, M)
    Vector<Real, Space> bias;        ///< (1), 0 at the start
    template <class F, class... Same>
    static void visit(F&& f, Same&... same) {
      f("first.weight", same.first...);
      f("first.bias", same.first_bias...);
      f("weight", same.weight...);
      f("bias", same.bias...);
    }
  };

  template <class Real, class Space>
  Parameters<Real, Space> parameters(Index hidden) const {
    detail::require<ConfigError>(width >= 0, "moe::DepthPredictor: width is ", width, "; it must not be negative.");
    const Index m = width > 0 ? width : hidden < 4 ? 1 : hidden / 4;
    return {Matrix<Real, Space>("moe::predictor.first.weight", m, hidden),
            Vector<Real, Space>("moe::predictor.first.bias", m), Matrix<Real, Space>("moe::predictor.weight", 1, m),
            Vector<Real, Space>("moe::predictor.bias", 1)};
  }

  /// x (T, H') to logits (T, 1).
  template <class T, class Real, class Space>
  void forward(Context<Space>& ctx, const Matrix<const T, Space>& x, const Parameters<Real, Space>& p,
               const Matrix<Real, Space>& logits) const;
  /// Adds the gradients of the parameters for dlogits (T, 1).
  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Matrix<const T, Space>& x, const Matrix<Real, Space>& dlogits,
                const Parameters<Real, Space>& p, Parameters<Real, Space>& gradients) const;
};

namespace detail {

/// rows(t) = max(rows(t) + bias, 0); where there is a gradient, it is stopped where that is 0.
template <class Real, class Space>
struct HiddenOfPredictor {
  Vector<const Real, Space> bias;
  Matrix<Real, Space> rows, gradient;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    team.each(Index(rows.extent(1)), [&](Index i) {
      const Real z = rows(t, i) + bias(i);
      rows(t, i) = ReLU::value(z);
      if (gradient.data() != nullptr) gradient(t, i) *= ReLU::derivative(z);
    });
  }
};

template <class T, class Real, class Space>
struct WidenRow {
  Matrix<const T, Space> from;
  Matrix<Real, Space> to;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    team.each(Index(to.extent(1)), [&](Index i) { to(t, i) = Real(from(t, i)); });
  }
};

/// The predictor's input in its own precision; a plain view where it has that already.
template <class Real, class T, class Space>
Matrix<const Real, Space> widened(Context<Space>& ctx, typename Context<Space>::Scratch& scratch,
                                  const Matrix<const T, Space>& x) {
  if constexpr (std::is_same_v<T, Real>) {
    return x;
  } else {
    auto to = scratch.template matrix<Real>(x.extent(0), x.extent(1));
    each_row(ctx.space, "moe::DepthPredictor::input", Index(x.extent(0)), WidenRow<T, Real, Space>{x, to}, 4);
    return to;
  }
}

}  // namespace detail

template <class T, class Real, class Space>
void DepthPredictor::forward(Context<Space>& ctx, const Matrix<const T, Space>& x, const Parameters<Real, Space>& p,
                             const Matrix<Real, Space>& logits) const {
  using M = Matrix<const Real, Space>;
  typename Context<Space>::Scratch scratch(ctx);
  const Index tokens = x.extent(0);
  auto hidden = scratch.template matrix<Real>(tokens, p.first.extent(0));
  kernels::dense_forward<Real, Space>(ctx.space, detail::widened<Real>(ctx, scratch, x), M(p.first), hidden);
  detail::each_row(ctx.space, "moe::DepthPredictor::hidden", tokens,
                   detail::HiddenOfPredictor<Real, Space>{p.first_bias, hidden, {}}, 4);
  kernels::dense_forward<Real, Space>(ctx.space, M(hidden), M(p.weight), logits);
  detail::each(ctx.space, "moe::DepthPredictor::bias", tokens, detail::AddVector<Real, Space>{p.bias, logits});
}

template <class T, class Real, class Space>
void DepthPredictor::backward(Context<Space>& ctx, const Matrix<const T, Space>& x, const Matrix<Real, Space>& dlogits,
                              const Parameters<Real, Space>& p, Parameters<Real, Space>& gradients) const {
  using M = Matrix<const Real, Space>;
  typename Context<Space>::Scratch scratch(ctx);
  const Index tokens = x.extent(0), m = p.first.extent(0);
  const M input = detail::widened<Real>(ctx, scratch, x);
  auto hidden = scratch.template matrix<Real>(tokens, m), dhidden = scratch.template matrix<Real>(tokens, m);
  kernels::dense_forward<Real, Space>(ctx.space, input, M(p.first), hidden);
  kernels::dense_backward_rows<Real, Space>(ctx.space, M(dlogits), M(p.weight), dhidden, false);
  detail::each_row(ctx.space, "moe::DepthPredictor::hidden", tokens,
                   detail::HiddenOfPredictor<Real, Space>{p.first_bias, hidden, dhidden}, 4);
  kernels::dense_backward_weight<Real, Space>(ctx.space, M(dlogits), M(hidden), gradients.weight);
  kernels::dense_backward_weight<Real, Space>(ctx.space, M(dhidden), input, gradients.first);
  detail::each(ctx.space, "moe::DepthPredictor::bias", 1, detail::SumRows<Real, Real, Space>{dlogits, gradients.bias});
  detail::each(ctx.space, "moe::DepthPredictor::first_bias", m,
               detail::SumRows<Real, Real, Space>{dhidden, gradients.first_bias});
}

MOE_NAMESPACE_END
