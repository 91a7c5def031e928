#pragma once
/// @file
/// SwitchHead's forward and backward, in the order of the data. A token has heads * k slots a side, k of each head.

#include <Kokkos_Profiling_ScopedRegion.hpp>

#include "moe/attention/switch_head.hpp"

MOE_NAMESPACE_BEGIN

template <int k, class... Policies>
void SwitchHead<k, Policies...>::run(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape,
                                     Cache* cache) const {
  const Kokkos::Profiling::ScopedRegion stage("moe::attention");
  detail::check_tokens("moe::SwitchHead", batch, config_.hidden);
  const Index tokens = batch.tokens();
  detail::check_seen(ctx.space, "moe::SwitchHead::forward", tape.y, tokens);
  tape.space = ctx.space;
  tape.batch = batch;
  tape.batch.router_input = {};  // another layer's
  source().forward(ctx, tape.batch, parameters.source, buffers.source, tape.source);
  destination().forward(ctx, tape.batch, parameters.destination, buffers.destination, tape.destination);
  detail::shape(tape.query_key, "moe::query_key", tokens, 2 * config_.columns());
  detail::shape(tape.mixed, "moe::mixed", tokens, config_.columns());
  kernels::dense_forward<Scalar, Space, false>(ctx.space, batch.x, M(parameters.query_key), tape.query_key);
  mix_values(ctx, tape);
  detail::attend(ctx, settings(), batch, heads(tape.query_key), keys(tape.query_key), heads(tape.value),
                 heads(tape.mixed), tape.attention, cache);
  combine_outputs(ctx, tape);
  constexpr Index losses = Side::losses;
  detail::shape(tape.losses, "moe::losses", 2 * losses);
  detail::fill(ctx.space, tape.losses, 0.0);
  source().add_losses(ctx, tape.batch, tape.source, tape.losses.data());
  destination().add_losses(ctx, tape.batch, tape.destination, tape.losses.data() + losses);
  if constexpr (!detail::device_path<Space>) ctx.check();
}

template <int k, class... Policies>
void SwitchHead<k, Policies...>::mix_values(Context<Space>& ctx, Tape& tape) const {
  const auto& plan = tape.source.plan;
  detail::shape(tape.value_rows, "moe::value_rows", plan.rows, config_.width());
  detail::shape(tape.value, "moe::value", plan.tokens, config_.columns());
  if constexpr (detail::device_path<Space>) {  // which reads tokens by their numbers
    kernels::grouped_forward<Scalar, Space>(ctx.space, plan.expert_offsets, tape.batch.x, W(parameters.value),
                                            tape.value_rows, {plan.rows_each, plan.row_token.data()});
  } else {
    detail::shape(tape.rows, "moe::rows", plan.rows, config_.hidden);
    gather(ctx, tape.batch.x, plan, tape.rows);
    kernels::grouped_forward<Scalar, Space>(ctx.space, plan.expert_offsets, M(tape.rows), W(parameters.value),
                                            tape.value_rows, {plan.rows_each});
  }
  detail::sum_slots(ctx, tape.value_rows, tape.source.weight, plan, k, tape.value.data());
}

template <int k, class... Policies>
void SwitchHead<k, Policies...>::combine_outputs(Context<Space>& ctx, Tape& tape) const {
  const auto& plan = tape.destination.plan;
  Scratch scratch(ctx);
  auto rows = scratch.template matrix<Scalar>(plan.rows, config_.width());
  auto out = scratch.template matrix<Scalar>(plan.rows, config_.hidden);
  detail::shape(tape.y, "moe::y", plan.tokens, config_.hidden);
  detail::spread_slots(ctx, static_cast<const Scalar*>(tape.mixed.data()), Vector<Real, Space>{}, plan, k, rows);
  kernels::grouped_forward<Scalar, Space>(ctx.space, plan.expert_offsets, M(rows), W(parameters.output), out,
                                          {plan.rows_each});
  combine(ctx, M(out), Vector<const Real, Space>(tape.destination.weight), plan, tape.y);
}

template <int k, class... Policies>
auto SwitchHead<k, Policies...>::backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                          Gradients& gradients, double loss_scale) const -> Matrix<Scalar, Space> {
  const Kokkos::Profiling::ScopedRegion stage("moe::attention");
  const Index tokens = tape.batch.tokens(), columns = config_.columns();
  detail::check_backward("moe::SwitchHead", id_, tape.owner, gradients.owner, dy, tokens, config_.hidden);
  detail::check_seen(ctx.space, "moe::SwitchHead::backward", tape.dx, tokens);
  Scratch scratch(ctx);
  auto dmixed = scratch.template matrix<Scalar>(tokens, columns),
       dvalue = scratch.template matrix<Scalar>(tokens, columns);
  auto dquery_key = scratch.template matrix<Scalar>(tokens, 2 * columns);
  auto of_values = scratch.template vector<Real>(tape.source.routing.assignments.bound);
  auto of_outputs = scratch.template vector<Real>(tape.destination.routing.assignments.bound);
  combine_outputs_backward(ctx, dy, tape, dmixed, of_outputs, gradients);
  detail::attend_backward(ctx, settings(), detail::constant(heads(tape.query_key)),
                          detail::constant(keys(tape.query_key)), detail::constant(heads(tape.value)),
                          detail::constant(heads(tape.mixed)), tape.attention, detail::constant(heads(dmixed)),
                          heads(dquery_key), keys(dquery_key), heads(dvalue));
  detail::shape(tape.dx, "moe::dx", tokens, config_.hidden);
  mix_values_backward(ctx, dvalue, tape, of_values, gradients);
  kernels::dense_backward_rows<Scalar, Space, false>(ctx.space, M(dquery_key), M(parameters.query_key), tape.dx, true);
  kernels::dense_backward_weight<Scalar, Space, false>(ctx.space, M(dquery_key), tape.batch.x, gradients.query_key);
  source().backward(ctx, tape.batch, parameters.source, tape.source, of_values, loss_scale, tape.dx, gradients.source);
  destination().backward(ctx, tape.batch, parameters.destination, tape.destination, of_outputs, loss_scale, tape.dx,
                         gradients.destination);
  return tape.dx;
}

/// dmixed (T, heads D) and dweight (A) overwritten.
template <int k, class... Policies>
void SwitchHead<k, Policies...>::combine_outputs_backward(Context<Space>& ctx, const M& dy, const Tape& tape,
                                                          const Matrix<Scalar, Space>& dmixed,
                                                          const Vector<Real, Space>& dweight,
                                                          Gradients& gradients) const {
  const auto& plan = tape.destination.plan;
  Scratch scratch(ctx);
  auto dout = scratch.template matrix<Scalar>(plan.rows, config_.hidden);
  auto drows = scratch.template matrix<Scalar>(plan.rows, config_.width());
  auto weighted = scratch.template matrix<Scalar>(plan.rows, config_.width());
  gather(ctx, dy, plan, dout);
  kernels::grouped_backward_rows<Scalar, Space>(ctx.space, plan.expert_offsets, M(dout), W(parameters.output), drows,
                                                {plan.rows_each});
  detail::pull_slots(ctx, static_cast<const Scalar*>(tape.mixed.data()), drows, tape.destination.weight, plan, k,
                     dmixed.data(), weighted, dweight);
  kernels::grouped_backward_weight<Scalar, Space>(ctx.space, plan.expert_offsets, M(dout), M(weighted),
                                                  gradients.output, {plan.rows_each});
}

/// tape.dx (T, H) and dweight (A) overwritten.
template <int k, class... Policies>
void SwitchHead<k, Policies...>::mix_values_backward(Context<Space>& ctx, const Matrix<Scalar, Space>& dvalue,
                                                     const Tape& tape, const Vector<Real, Space>& dweight,
                                                     Gradients& gradients) const {
  const auto& plan = tape.source.plan;
  Scratch scratch(ctx);
  auto dvalue_rows = scratch.template matrix<Scalar>(plan.rows, config_.width());
  auto drows = scratch.template matrix<Scalar>(plan.rows, config_.hidden);
  detail::spread_slots(ctx, static_cast<const Scalar*>(dvalue.data()), tape.source.weight, plan, k, dvalue_rows,
                       tape.value_rows, dweight);
  if constexpr (detail::device_path<Space>) {
    kernels::grouped_backward_weight<Scalar, Space>(ctx.space, plan.expert_offsets, M(dvalue_rows), tape.batch.x,
                                                    gradients.value, {plan.rows_each, plan.row_token.data()});
  } else {
    kernels::grouped_backward_weight<Scalar, Space>(ctx.space, plan.expert_offsets, M(dvalue_rows), M(tape.rows),
                                                    gradients.value, {plan.rows_each});
  }
  kernels::grouped_backward_rows<Scalar, Space>(ctx.space, plan.expert_offsets, M(dvalue_rows), W(parameters.value),
                                                drows, {plan.rows_each});
  scatter_add(ctx, M(drows), plan, tape.dx);
}

MOE_NAMESPACE_END
