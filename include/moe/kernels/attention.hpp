#pragma once
/// @file
/// The interface of attention's arithmetic: softmax(q k^T scale) v by head, never held as a whole, and its gradients.
/// Every sum runs in a fixed order that depends on neither threads nor other sequences.

#include "moe/kernels/attention_plan.hpp"
#include "moe/kernels/cpu/attention.hpp"
#include "moe/kernels/device/attention.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels {

/// out (queries, heads, width) overwritten, and log_sum (queries, heads): the logarithm of each softmax's denominator.
template <class T, class Space>
void attention_forward(Context<Space>& ctx, const AttentionPlan<Space>& plan, const AttentionHeads<T>& heads,
                       const HeadRows<T>& out, const Matrix<RouterReal<T>, Space>& log_sum) {
  if (plan.queries == 0) return;
  if constexpr (moe::detail::device_path<Space>) {
    device::attention_forward(ctx.space, plan, heads, out, log_sum);
  } else {
    cpu::attention_forward(ctx, plan, heads, out, log_sum);
  }
}

/// dq, dk, dv from dout, where forward gave out and log_sum. All three are overwritten.
template <class T, class Space>
void attention_backward(Context<Space>& ctx, const AttentionPlan<Space>& plan, const AttentionHeads<T>& heads,
                        const HeadRows<const T>& out, const Matrix<RouterReal<T>, Space>& log_sum,
                        const HeadRows<const T>& dout, const HeadRows<T>& dq, const HeadRows<T>& dk,
                        const HeadRows<T>& dv) {
  using Real = RouterReal<T>;
  if (plan.queries == 0) return;
  typename Context<Space>::Scratch scratch(ctx);
  auto delta = scratch.template matrix<Real>(plan.queries, heads.q.heads);
  moe::detail::each(ctx.space, "moe::attention", plan.queries * heads.q.heads,
                    detail::OutputTimesGradient<T, Real, Space>{out, dout, heads.width, delta});
  const detail::AttentionGradients<T, Real, Space> gradients{log_sum, delta, dout, dq, dk, dv};
  if constexpr (moe::detail::device_path<Space>) {
    device::attention_backward(ctx.space, plan, heads, gradients);
  } else {
    cpu::attention_backward(ctx, plan, heads, gradients);
  }
}

}  // namespace kernels

MOE_NAMESPACE_END
