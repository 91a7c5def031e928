#pragma once
/// @file
/// MixtureOfAttentionHeads' forward and backward, in the order of the data.

#include <Kokkos_Profiling_ScopedRegion.hpp>

#include "moe/attention/mixture_of_attention_heads.hpp"

MOE_NAMESPACE_BEGIN

template <class... Policies>
auto MixtureOfAttentionHeads<Policies...>::run(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape,
                                               Cache* cache) const -> Matrix<Scalar, Space> {
  const Kokkos::Profiling::ScopedRegion stage("moe::attention");
  project_queries(ctx, batch, tape);
  detail::shape(tape.key_value, "moe::key_value", batch.tokens(), 2 * config_.columns());
  kernels::dense_forward<Scalar, Space, false>(ctx.space, batch.x, M(parameters.key_value), tape.key_value);
  detail::shape(tape.mixed, "moe::mixed", batch.tokens(), tape.query.extent(1));
  detail::attend(ctx, settings(), batch, heads(tape.query), keys(tape.key_value), values(tape.key_value),
                 heads(tape.mixed), tape.attention, cache);
  combine_outputs(ctx, tape);
  if constexpr (!detail::device_path<Space>) ctx.check();
  return tape.y;
}

template <class... Policies>
void MixtureOfAttentionHeads<Policies...>::project_queries(Context<Space>& ctx, const Batch<Scalar, Space>& batch,
                                                           Tape& tape) const {
  detail::check_tokens("moe::MixtureOfAttentionHeads", batch, config_.hidden);
  detail::check_seen(ctx.space, "moe::MixtureOfAttentionHeads::forward", tape.query, batch.tokens());
  tape.owner = id_;
  tape.space = ctx.space;
  tape.batch = batch;
  tape.batch.router_input = {};  // another layer's
  head_router().forward(ctx, tape.batch, parameters.router, buffers.router, tape);
  const auto& plan = tape.plan;
  Scratch scratch(ctx);
  auto projected = scratch.template matrix<Scalar>(plan.rows, config_.columns());
  if constexpr (detail::device_path<Space>) {  // which reads tokens by their numbers
    kernels::grouped_forward<Scalar, Space>(ctx.space, plan.expert_offsets, batch.x, W(parameters.query), projected,
                                            {plan.rows_each, plan.row_token.data()});
  } else {
    detail::shape(tape.rows, "moe::rows", plan.rows, config_.hidden);
    gather(ctx, batch.x, plan, tape.rows);
    kernels::grouped_forward<Scalar, Space>(ctx.space, plan.expert_offsets, M(tape.rows), W(parameters.query),
                                            projected, {plan.rows_each});
  }
  detail::shape(tape.query, "moe::query", batch.tokens(), tape.routing.assignments.uniform_k * config_.columns());
  detail::sum_slots(ctx, projected, Vector<Real, Space>{}, plan, 1, tape.query.data());
}

template <class... Policies>
void MixtureOfAttentionHeads<Policies...>::combine_outputs(Context<Space>& ctx, Tape& tape) const {
  detail::require<Error>(
      tape.owner == id_,
      "moe::MixtureOfAttentionHeads::combine_outputs: this tape holds no queries of this layer. Call "
      "project_queries first.");
  check_slots("combine_outputs: mixed", tape.mixed, tape);
  const auto& plan = tape.plan;
  const Index tokens = tape.batch.tokens();
  detail::shape(tape.y, "moe::y", tokens, config_.hidden);
  {
    Scratch scratch(ctx);
    auto out = scratch.template matrix<Scalar>(plan.rows, config_.hidden);
    if constexpr (detail::device_path<Space>) {
      kernels::grouped_forward<Scalar, Space>(ctx.space, plan.expert_offsets, slots(tape.mixed), W(parameters.output),
                                              out, {plan.rows_each, plan.row_assignment.data()});
    } else {
      auto rows = scratch.template matrix<Scalar>(plan.rows, config_.columns());
      detail::spread_slots(ctx, tape.mixed.data(), Vector<Real, Space>{}, plan, 1, rows);
      kernels::grouped_forward<Scalar, Space>(ctx.space, plan.expert_offsets, M(rows), W(parameters.output), out,
                                              {plan.rows_each});
    }
    combine(ctx, M(out), Vector<const Real, Space>(tape.weight), plan, tape.y);
  }
  detail::forward_outputs<true>(Outputs{}, policies_, ctx, tape.batch, parameters.outputs, tape.y, tape.outputs);
  detail::forward_outputs<false>(Outputs{}, policies_, ctx, tape.batch, parameters.outputs, tape.y, tape.outputs);
  detail::shape(tape.losses, "moe::losses", detail::length<Losses>);
  detail::fill(ctx.space, tape.losses, 0.0);
  head_router().add_losses(ctx, tape.batch, tape, tape.losses.data());
}

template <class... Policies>
auto MixtureOfAttentionHeads<Policies...>::backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy,
                                                    Tape& tape, Gradients& gradients, double loss_scale) const
    -> Matrix<Scalar, Space> {
  const Kokkos::Profiling::ScopedRegion stage("moe::attention");
  Scratch scratch(ctx);
  auto dmixed = scratch.template matrix<Scalar>(tape.mixed.extent(0), tape.mixed.extent(1));
  auto dquery = scratch.template matrix<Scalar>(tape.query.extent(0), tape.query.extent(1));
  auto dkey_value = scratch.template matrix<Scalar>(tape.key_value.extent(0), tape.key_value.extent(1));
  combine_outputs_backward(ctx, dy, tape, dmixed, gradients);
  detail::attend_backward(ctx, settings(), detail::constant(heads(tape.query)), detail::constant(keys(tape.key_value)),
                          detail::constant(values(tape.key_value)), detail::constant(heads(tape.mixed)), tape.attention,
                          detail::constant(heads(dmixed)), heads(dquery), keys(dkey_value), values(dkey_value));
  project_queries_backward(ctx, dquery, tape, gradients, loss_scale);
  kernels::dense_backward_rows<Scalar, Space, false>(ctx.space, M(dkey_value), M(parameters.key_value), tape.dx, true);
  kernels::dense_backward_weight<Scalar, Space, false>(ctx.space, M(dkey_value), tape.batch.x, gradients.key_value);
  return tape.dx;
}

template <class... Policies>
void MixtureOfAttentionHeads<Policies...>::combine_outputs_backward(Context<Space>& ctx,
                                                                    const Matrix<const Scalar, Space>& dy_given,
                                                                    Tape& tape, const Matrix<Scalar, Space>& dmixed,
                                                                    Gradients& gradients) const {
  const Index tokens = tape.batch.tokens();
  detail::check_backward("moe::MixtureOfAttentionHeads", id_, tape.owner, gradients.owner, dy_given, tokens,
                         config_.hidden);
  detail::check_seen(ctx.space, "moe::MixtureOfAttentionHeads::backward", tape.dx, tokens);
  check_slots("combine_outputs_backward: dmixed", dmixed, tape);
  const auto& plan = tape.plan;
  Scratch scratch(ctx);
  M dy = dy_given;
  if constexpr (detail::length<Outputs> != 0) {
    auto changed = scratch.template matrix<Scalar>(tokens, config_.hidden);
    if (tokens != 0) Kokkos::deep_copy(ctx.space, changed, dy);
    detail::backward_outputs<false>(Outputs{}, policies_, ctx, tape.batch, parameters.outputs, tape.outputs, changed,
                                    gradients.outputs);
    detail::backward_outputs<true>(Outputs{}, policies_, ctx, tape.batch, parameters.outputs, tape.outputs, changed,
                                   gradients.outputs);
    dy = changed;
  }
  auto dout = scratch.template matrix<Scalar>(plan.rows, config_.hidden);
  auto drows = scratch.template matrix<Scalar>(plan.rows, config_.columns());
  auto weighted = scratch.template matrix<Scalar>(plan.rows, config_.columns());
  gather(ctx, dy, plan, dout);
  kernels::grouped_backward_rows<Scalar, Space>(ctx.space, plan.expert_offsets, M(dout), W(parameters.output), drows,
                                                {plan.rows_each});
  detail::shape(tape.dweight, "moe::dweight", tape.routing.assignments.bound);
  detail::pull_slots(ctx, static_cast<const Scalar*>(tape.mixed.data()), drows, tape.weight, plan, 1, dmixed.data(),
                     weighted, tape.dweight);
  kernels::grouped_backward_weight<Scalar, Space>(ctx.space, plan.expert_offsets, M(dout), M(weighted),
                                                  gradients.output, {plan.rows_each});
}

template <class... Policies>
void MixtureOfAttentionHeads<Policies...>::project_queries_backward(Context<Space>& ctx,
                                                                    const Matrix<Scalar, Space>& dquery, Tape& tape,
                                                                    Gradients& gradients, double loss_scale) const {
  check_slots("project_queries_backward: dquery", dquery, tape);
  const auto& plan = tape.plan;
  Scratch scratch(ctx);
  auto dprojected = scratch.template matrix<Scalar>(plan.rows, config_.columns());
  auto drows = scratch.template matrix<Scalar>(plan.rows, config_.hidden);
  detail::spread_slots(ctx, static_cast<const Scalar*>(dquery.data()), Vector<Real, Space>{}, plan, 1, dprojected);
  if constexpr (detail::device_path<Space>) {
    kernels::grouped_backward_weight<Scalar, Space>(ctx.space, plan.expert_offsets, M(dprojected), tape.batch.x,
                                                    gradients.query, {plan.rows_each, plan.row_token.data()});
  } else {
    kernels::grouped_backward_weight<Scalar, Space>(ctx.space, plan.expert_offsets, M(dprojected), M(tape.rows),
                                                    gradients.query, {plan.rows_each});
  }
  kernels::grouped_backward_rows<Scalar, Space>(ctx.space, plan.expert_offsets, M(dprojected), W(parameters.query),
                                                drows, {plan.rows_each});
  detail::shape(tape.dx, "moe::dx", tape.batch.tokens(), config_.hidden);
  scatter_add(ctx, M(drows), plan, tape.dx);
  head_router().backward(ctx, tape.batch, parameters.router, tape, tape.dweight, loss_scale, tape.dx, gradients.router);
}

MOE_NAMESPACE_END
