#pragma once
/// @file
/// RoutedAttention's forward and backward, in the order of the data.

#include "moe/attention/routed_attention.hpp"
#include "moe/layers/detail/depth_rows.hpp"

MOE_NAMESPACE_BEGIN

template <class... Policies>
auto RoutedAttention<Policies...>::forward(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const
    -> Matrix<Scalar, Space> {
  const Kokkos::Profiling::ScopedRegion stage("moe::attention");
  detail::check_tokens("moe::RoutedAttention", batch, config_.hidden);
  detail::check_seen(ctx.space, "moe::RoutedAttention::forward", tape.y, batch.tokens());
  tape.space = ctx.space;
  tape.batch = batch;
  tape.batch.router_input = {};
  const Batch<Scalar, Space>& tokens = tape.batch;
  chooser(query_router_).forward(ctx, tokens, parameters.query_router, buffers.query_router, tape.query);
  chooser(key_router_).forward(ctx, tokens, parameters.key_router, buffers.key_router, tape.key);
  chooser(value_router_).forward(ctx, tokens, parameters.value_router, buffers.value_router, tape.value);
  take_rows(ctx, tokens, parameters.query, tape.query);
  take_rows(ctx, tokens, parameters.key, tape.key);
  take_rows(ctx, tokens, parameters.value, tape.value);
  weigh(ctx, tape.key, tape.key, tape.keys);
  weigh(ctx, tape.value, tape.key, tape.values);
  turn(ctx, tokens, tape.query, tape.attention.rotary, tape.query.projected);
  turn(ctx, tokens, tape.key, tape.key_rotary, tape.keys);

  plan_attention(ctx, tape);
  const Index queries = tape.query.plan.rows;
  detail::shape(tape.mixed, "moe::mixed", queries, config_.columns());
  detail::shape(tape.attention.log_sum, "moe::log_sum", queries, config_.heads);
  const kernels::AttentionHeads<Scalar> of{config_.width(),
                                           scale(),
                                           false,
                                           detail::constant(heads(tape.query.projected)),
                                           detail::constant(heads(tape.keys)),
                                           detail::constant(heads(tape.values))};
  kernels::attention_forward(ctx, tape.attention.plan, of, heads(tape.mixed), tape.attention.log_sum);
  detail::shape(tape.update, "moe::update", queries, config_.hidden);
  kernels::dense_forward<Scalar, Space, false>(ctx.space, M(tape.mixed), M(parameters.output), tape.update);
  detail::shape(tape.y, "moe::y", batch.tokens(), config_.hidden);
  combine(ctx, M(tape.update), Vector<const Real, Space>(tape.query.weight), tape.query.plan, tape.y);

  constexpr Index losses = Chooser::losses;
  detail::shape(tape.losses, "moe::losses", 3 * losses);
  detail::fill(ctx.space, tape.losses, 0.0);
  chooser(query_router_).add_losses(ctx, tokens, tape.query, tape.losses.data());
  chooser(key_router_).add_losses(ctx, tokens, tape.key, tape.losses.data() + losses);
  chooser(value_router_).add_losses(ctx, tokens, tape.value, tape.losses.data() + 2 * losses);
  tape.owner = id_;
  if constexpr (!detail::device_path<Space>) ctx.check();
  return tape.y;
}

/// The chosen tokens, and their projection.
template <class... Policies>
void RoutedAttention<Policies...>::take_rows(Context<Space>& ctx, const Batch<Scalar, Space>& batch, const M& weight,
                                             Side& side) const {
  if constexpr (!detail::device_path<Space>) side.plan.rows = side.plan.expert_offsets(1);  // hosts know the number
  const Index rows = side.plan.rows;
  detail::shape(side.x, "moe::rows", rows, config_.hidden);
  detail::shape(side.projected, "moe::projected", rows, config_.columns());
  detail::each_wide_row(ctx.space, "moe::gather", rows, config_.hidden,
                        detail::TakeRow<Scalar, Space>{batch.x, side.plan.row_token, side.x});
  kernels::dense_forward<Scalar, Space, false>(ctx.space, M(side.x), weight, side.projected);
}

/// to (key rows, heads D): what keys or values are to their tokens' attention.
template <class... Policies>
void RoutedAttention<Policies...>::weigh(Context<Space>& ctx, const Side& of, const Side& keys,
                                         Matrix<Scalar, Space>& to) const {
  detail::shape(to, "moe::weighted", keys.plan.rows, config_.columns());
  detail::each_wide_row(ctx.space, "moe::RoutedAttention::weigh", keys.plan.rows, config_.columns(),
                        detail::WeighForKey<Scalar, Real, Space>{keys.plan.row_token, chosen(of), of.projected, to});
}

/// Turns rows by the positions that their tokens have in the whole sequence.
template <class... Policies>
void RoutedAttention<Policies...>::turn(Context<Space>& ctx, const Batch<Scalar, Space>& batch, const Side& side,
                                        Matrix<Real, Space>& table, const Matrix<Scalar, Space>& rows) const {
  if (config_.rotary_base == 0) return;
  Scratch scratch(ctx);
  auto positions = scratch.template vector<Index>(side.plan.rows);
  detail::each(
      ctx.space, "moe::RoutedAttention::positions", side.plan.rows,
      detail::TakeFacts<Space>{
          side.plan.row_token, detail::groups(Scope::sequence(), batch), batch.positions, {}, positions, {}, {}});
  detail::shape(table, "moe::rotary", side.plan.rows, config_.width());
  detail::each_row(ctx.space, "moe::rotary", side.plan.rows,
                   detail::RotaryAngles<Real, Space>{positions, {}, Kokkos::log(config_.rotary_base), table});
  detail::rotate(ctx, table, rows.data(), config_.columns(), config_.heads, false);
}

template <class... Policies>
void RoutedAttention<Policies...>::plan_attention(Context<Space>& ctx, Tape& tape) const {
  AttentionPlan<Space>& plan = tape.attention.plan;
  const auto& query = tape.query.plan;
  const auto& key = tape.key.plan;
  const auto sequences = detail::groups(Scope::sequence(), tape.batch);
  plan.sequences = sequences.count;
  plan.queries = query.rows;
  plan.keys = key.rows;
  detail::shape(plan.offsets, "moe::query_offsets", sequences.count + 1);
  detail::shape(plan.begins, "moe::key_offsets", sequences.count + 1);
  detail::shape(plan.sequence, "moe::sequence", query.rows);
  detail::shape(plan.visible, "moe::visible", query.rows);
  plan.query_offsets = plan.offsets;
  plan.key_begin = Vector<const Index, Space>(plan.begins.data(), sequences.count);
  plan.key_end = Vector<const Index, Space>(plan.begins.data() + 1, sequences.count);
  detail::each(ctx.space, "moe::RoutedAttention::offsets", sequences.count + 1,
               detail::SequenceRows<Space>{sequences, tape.batch.tokens(), query.token_offsets, key.token_offsets,
                                           plan.offsets, plan.begins});
  detail::each(ctx.space, "moe::RoutedAttention::plan", query.rows,
               detail::RoutedQuery<Space>{sequences, query.row_token, key.token_offsets, plan.sequence, plan.visible});
}

template <class... Policies>
auto RoutedAttention<Policies...>::backward(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                            Gradients& gradients, double loss_scale) const -> Matrix<Scalar, Space> {
  const Kokkos::Profiling::ScopedRegion stage("moe::attention");
  const Index tokens = tape.batch.tokens(), hidden = config_.hidden, columns = config_.columns();
  detail::check_backward("moe::RoutedAttention", id_, tape.owner, gradients.owner, dy, tokens, hidden);
  detail::check_seen(ctx.space, "moe::RoutedAttention::backward", tape.dx, tokens);
  const auto &query = tape.query, &key = tape.key, &value = tape.value;
  const Index queries = query.plan.rows, keys = key.plan.rows, values = value.plan.rows;
  Scratch scratch(ctx);
  const auto rows = [&](Index count, Index width) { return scratch.template matrix<Scalar>(count, width); };
  const auto of_weights = [&](const Side& side) {
    auto result = scratch.template vector<Real>(side.routing.assignments.bound);
    detail::fill(ctx.space, result, Real(0));
    return result;
  };
  const auto of_query = of_weights(query), of_key = of_weights(key), of_value = of_weights(value);

  auto dupdate = rows(queries, hidden), dmixed = rows(queries, columns);
  detail::each_row(
      ctx.space, "moe::RoutedAttention::combine", queries,
      detail::UpdateGradientRow<Scalar, Real, Space>{dy, tape.update, query.weight, query.plan, dupdate, of_query});
  kernels::dense_backward_rows<Scalar, Space, false>(ctx.space, M(dupdate), M(parameters.output), dmixed, false);
  kernels::dense_backward_weight<Scalar, Space, false>(ctx.space, M(dupdate), M(tape.mixed), gradients.output);

  auto dquery = rows(queries, columns), dkeys = rows(keys, columns), dvalues = rows(keys, columns);
  const kernels::AttentionHeads<Scalar> of{config_.width(),
                                           scale(),
                                           false,
                                           detail::constant(heads(query.projected)),
                                           detail::constant(heads(tape.keys)),
                                           detail::constant(heads(tape.values))};
  if (queries == 0) {  // attention then writes nothing
    detail::fill(ctx.space, dkeys, Scalar(0));
    detail::fill(ctx.space, dvalues, Scalar(0));
  }
  kernels::attention_backward(ctx, tape.attention.plan, of, detail::constant(heads(tape.mixed)), tape.attention.log_sum,
                              detail::constant(heads(dmixed)), heads(dquery), heads(dkeys), heads(dvalues));
  detail::rotate(ctx, tape.attention.rotary, dquery.data(), columns, config_.heads, true);
  detail::rotate(ctx, tape.key_rotary, dkeys.data(), columns, config_.heads, true);

  auto dkey = rows(keys, columns), dvalue = rows(values, columns);
  const auto weigh_back = [&](const Side& side, const auto& dto, const auto& dfrom, const auto& dweight) {
    detail::each_row(ctx.space, "moe::RoutedAttention::weigh", side.plan.rows,
                     detail::WeighForKeyGradient<Scalar, Real, Space>{chosen(side), key.plan.token_offsets,
                                                                      side.projected, dto, dfrom, dweight});
  };
  weigh_back(key, dkeys, dkey, of_key);
  weigh_back(value, dvalues, dvalue, of_value);
  const auto from_query = project_back(ctx, scratch, query, dquery, M(parameters.query), gradients.query);
  const auto from_key = project_back(ctx, scratch, key, dkey, M(parameters.key), gradients.key);
  const auto from_value = project_back(ctx, scratch, value, dvalue, M(parameters.value), gradients.value);
  detail::shape(tape.dx, "moe::dx", tokens, hidden);
  detail::each_wide_row(
      ctx.space, "moe::RoutedAttention::scatter", tokens, hidden,
      detail::SumChosenRows<Scalar, Space>{query.plan.token_offsets, key.plan.token_offsets, value.plan.token_offsets,
                                           from_query, from_key, from_value, tape.dx});
  chooser(query_router_)
      .backward(ctx, tape.batch, parameters.query_router, query, of_query, loss_scale, tape.dx, gradients.query_router);
  chooser(key_router_)
      .backward(ctx, tape.batch, parameters.key_router, key, of_key, loss_scale, tape.dx, gradients.key_router);
  chooser(value_router_)
      .backward(ctx, tape.batch, parameters.value_router, value, of_value, loss_scale, tape.dx, gradients.value_router);
  return tape.dx;
}

/// The gradient of a choice's tokens (R, H), the scratch's; adds to that of its projection.
template <class... Policies>
auto RoutedAttention<Policies...>::project_back(Context<Space>& ctx, Scratch& scratch, const Side& side,
                                                const Matrix<Scalar, Space>& drows, const M& weight,
                                                const Matrix<Scalar, Space>& dweight) const -> Matrix<Scalar, Space> {
  auto dx = scratch.template matrix<Scalar>(side.plan.rows, config_.hidden);
  kernels::dense_backward_rows<Scalar, Space, false>(ctx.space, M(drows), weight, dx, false);
  kernels::dense_backward_weight<Scalar, Space, false>(ctx.space, M(drows), M(side.x), dweight);
  return dx;
}

MOE_NAMESPACE_END
