#pragma once
/// @file
/// MoELayer's forward and backward, in the order of the data. Each stage is a region of Kokkos' profiling interface.

#include <Kokkos_Profiling_ScopedRegion.hpp>

#include "moe/layers/moe_layer.hpp"

MOE_NAMESPACE_BEGIN

template <class... Policies>
void MoELayer<Policies...>::check(const Batch<Scalar, Space>& batch) const {
  using detail::require;
  const Index tokens = batch.tokens();
  detail::check_tokens("moe::MoELayer", batch, config_.hidden);
  const auto router_input = batch.for_router();
  require<ShapeError>(Index(router_input.extent(0)) == tokens && Index(router_input.extent(1)) == router_shape().hidden,
                      "moe::MoELayer::forward: the router's input has shape (", router_input.extent(0), ", ",
                      router_input.extent(1), "), expected (", tokens, ", ", router_shape().hidden, ").");
  const auto branch_input = batch.for_branches();
  require<ShapeError>(Index(branch_input.extent(0)) == tokens && Index(branch_input.extent(1)) == config_.hidden,
                      "moe::MoELayer::forward: the branches' input has shape (", branch_input.extent(0), ", ",
                      branch_input.extent(1), "), expected (", tokens, ", ", config_.hidden, ").");
}

template <class... Policies>
void MoELayer<Policies...>::check_capture(const Context<Space>& ctx, const Batch<Scalar, Space>& batch,
                                          const Tape& tape) const {
  const bool seen = tape.owner == id_ && tape.batch.tokens() == batch.tokens() &&
                    tape.batch.sequence_offsets.extent(0) == batch.sequence_offsets.extent(0);
  detail::require<Error>(seen,
                         "moe::MoELayer::forward cannot be captured in a graph yet: its tape holds no pass of this "
                         "layer on ",
                         batch.tokens(), " tokens, so it has to allocate. Run the same calls once before capturing.");
  if constexpr (requires { Router::Selection::check_capture(ctx); }) Router::Selection::check_capture(ctx);
}

template <class... Policies>
auto MoELayer<Policies...>::map_input(Context<Space>& ctx, Scratch& scratch, const Batch<Scalar, Space>& batch,
                                      Tape& tape) const -> Batch<Scalar, Space> {
  Batch<Scalar, Space> mapped = batch;
  if constexpr (has_input_map) {
    tape.input_draws.key = {ctx.seed, ctx.step, config_.layer, Purpose::input};
    tape.input_draws.first_token = ctx.first_token;
    tape.input_draws.active = ctx.training;
    tape.input_draws.given = batch.draws;
    Matrix<Scalar, Space> to;
    if (recompute_level() == Recompute::everything) {
      to = scratch.template matrix<Scalar>(batch.tokens(), batch.hidden());
    } else {
      detail::shape(tape.mapped, "moe::mapped", batch.tokens(), batch.hidden());
      to = tape.mapped;
    }
    mapped.x = jitter_input(ctx, batch.x, tape, to);
  }
  return mapped;
}

template <class... Policies>
auto MoELayer<Policies...>::jitter_input(Context<Space>& ctx, const Matrix<const Scalar, Space>& x, const Tape& tape,
                                         const Matrix<Scalar, Space>& mapped) const -> Matrix<const Scalar, Space> {
  if constexpr (has_input_map) {
    detail::each_wide_row(ctx.space, "moe::input_map", Index(x.extent(0)), Index(x.extent(1)),
                          detail::JitterTokens<Scalar, Space>{x, mapped, tape.input_draws,
                                                              Jitter{std::get<InputMap>(policies_).epsilon}});
  }
  return mapped;
}

template <class... Policies>
void MoELayer<Policies...>::route(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const {
  const Kokkos::Profiling::ScopedRegion stage("moe::route");
  router_.forward(ctx, batch, parameters.router, buffers.router, config_.experts, tape.routing, config_.layer);
}

template <class... Policies>
void MoELayer<Policies...>::gather_rows(Context<Space>& ctx, const Batch<Scalar, Space>& batch, const Tape& tape,
                                        const Matrix<Scalar, Space>& rows) const {
  gather(ctx, inner_of(batch, tape), tape.plan, rows);
  if constexpr (weight_on_input) {
    Scratch scratch(ctx);
    auto row_weight = scratch.template vector<Real>(tape.plan.rows);
    const detail::Range<Space> range(ctx.space, 0, tape.plan.rows);
    Kokkos::parallel_for("moe::row_weight", range, detail::RowWeight<Real, Space>{tape.weight, tape.plan, row_weight});
    detail::each_wide_row(ctx.space, "moe::weight_on_input", tape.plan.rows, inner_width(),
                          detail::ScaleRow<Scalar, Real, Space>{tape.plan, row_weight, rows});
  }
}

template <class... Policies>
auto MoELayer<Policies...>::run(Context<Space>& ctx, const Batch<Scalar, Space>& given,
                                const Batch<Scalar, Space>& batch, Tape& tape) const -> Matrix<Scalar, Space> {
  using Stage = Kokkos::Profiling::ScopedRegion;
  const Recompute level = recompute_level();
  tape.owner = id_;
  tape.space = ctx.space;
  tape.recompute = level;
  tape.batch = level == Recompute::everything ? given : batch;
  const auto& assignments = tape.routing.assignments;
  const Index width = inner_width();
  {
    Scratch scratch(ctx);  // what backward recomputes, or never needs
    Matrix<Scalar, Space> rows;
    {
      const Stage stage("moe::dispatch");
      if constexpr (has_latent) latent().enter(ctx, batch.x, parameters.latent, tape.latent);
      dispatch(ctx, assignments, batch, config_.experts, capacity_, tape.plan, config_.layer);
      if (capacity_.renormalize != Renormalize::never) {
        detail::shape(tape.weight, "moe::weight", assignments.bound);
        renormalize(ctx, assignments, tape.plan, capacity_.renormalize, tape.weight);
      } else {
        tape.weight = assignments.weight;
      }
      if constexpr (!combines_itself && !reads_tokens) {
        if (level == Recompute::everything) {
          tape.rows = {};
          rows = scratch.template matrix<Scalar>(tape.plan.rows, width);
        } else {
          detail::shape(tape.rows, "moe::rows", tape.plan.rows, width);
          rows = tape.rows;
        }
        gather_rows(ctx, batch, tape, rows);
      }
    }
    detail::shape(tape.y, "moe::y", batch.tokens(), config_.hidden);
    if constexpr (combines_itself) {
      const Stage stage("moe::experts");
      experts_.forward_combined(ctx, inner_of(batch, tape), Vector<const Real, Space>(tape.weight), tape.plan,
                                parameters.experts, sum_of(tape), tape.experts);
    } else {
      Matrix<Scalar, Space> out;  // (R, L)
      {
        const Stage stage("moe::experts");
        if (needs_out && level == Recompute::nothing) {
          detail::shape(tape.out, "moe::out", tape.plan.rows, width);
          out = tape.out;
        } else {
          tape.out = {};
          out = scratch.template matrix<Scalar>(tape.plan.rows, width);
        }
        auto* saved = &tape.experts;
        typename Experts::template Saved<Scalar, Space> workspace;
        if constexpr (checkpoints) {
          if (level != Recompute::nothing) {
            tape.experts = {};
            workspace = experts_.template workspace<Scalar, Space>(scratch, tape.plan.rows, parameters.experts);
            saved = &workspace;
          }
        }
        experts_.forward(ctx, rows_of(batch, tape, rows), tape.plan, parameters.experts, out, *saved);
      }
      const Stage stage("moe::combine");
      const Vector<const Real, Space> weight = weight_on_input ? Vector<Real, Space>{} : tape.weight;
      combine(ctx, Matrix<const Scalar, Space>(out), weight, tape.plan, sum_of(tape));
    }
  }
  {
    const Stage stage("moe::combine");
    if constexpr (has_latent) latent().leave(ctx, parameters.latent, tape.latent, tape.y);
    detail::forward_outputs<true>(Outputs{}, policies_, ctx, batch, parameters.outputs, tape.y, tape.outputs);
  }
  {
    const Stage stage("moe::branches");
    detail::forward_branches(Branches{}, policies_, ctx, batch, parameters.branches, tape.y, tape.branches);
    detail::forward_outputs<false>(Outputs{}, policies_, ctx, batch, parameters.outputs, tape.y, tape.outputs);
  }
  evaluate_losses(ctx, tape);
  if constexpr (!detail::device_path<Space>) ctx.check();
  return tape.y;
}

template <class... Policies>
void MoELayer<Policies...>::evaluate_losses(Context<Space>& ctx, Tape& tape) const {
  const Kokkos::Profiling::ScopedRegion stage("moe::losses");
  detail::require<Error>(tape.owner == id_,
                         "moe::MoELayer::evaluate_losses: this tape holds no forward pass of this layer. Run "
                         "forward(ctx, x, tape) first.");
  detail::shape(tape.losses, "moe::losses", detail::length<Losses>);
  detail::fill(ctx.space, tape.losses, 0.0);
  detail::each_loss(Losses{}, policies_, [&](const auto& loss, Index number) {
    loss.value(ctx, tape.batch, tape.routing, Vector<double, Space>(tape.losses.data() + number, 1));
  });
}

template <class... Policies>
auto MoELayer<Policies...>::pull(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy_given, Tape& tape,
                                 Gradients& gradients, double loss_scale) const -> Matrix<Scalar, Space> {
  const Index tokens = tape.batch.tokens(), row_count = tape.plan.rows, width = inner_width();
  detail::check_backward("moe::MoELayer", id_, tape.owner, gradients.owner, dy_given, tokens, config_.hidden);
  detail::check_seen(ctx.space, "moe::MoELayer::backward", tape.dx, tokens);
  using Range = detail::Range<Space>;
  using Stage = Kokkos::Profiling::ScopedRegion;
  using M = Matrix<const Scalar, Space>;
  Scratch scratch(ctx);
  Batch<Scalar, Space> batch = tape.batch;
  Matrix<Scalar, Space> rows = tape.rows, out = tape.out;
  const auto* saved = &tape.experts;
  [[maybe_unused]] typename Experts::template Saved<Scalar, Space> workspace;
  if constexpr (checkpoints) {
    if (tape.recompute != Recompute::nothing) {
      const Stage stage("moe::recompute");
      if (tape.recompute == Recompute::everything) {
        if constexpr (has_input_map)
          batch.x = jitter_input(ctx, batch.x, tape, scratch.template matrix<Scalar>(tokens, batch.hidden()));
        if constexpr (!reads_tokens) {
          rows = scratch.template matrix<Scalar>(row_count, width);
          gather_rows(ctx, batch, tape, rows);
        }
      }
      workspace = experts_.template workspace<Scalar, Space>(scratch, row_count, parameters.experts);
      saved = &workspace;
      if constexpr (!needs_out && requires { &Experts::template recompute<Scalar, Space>; }) {
        experts_.recompute(ctx, rows_of(batch, tape, rows), tape.plan, parameters.experts, workspace);
      } else {
        out = scratch.template matrix<Scalar>(row_count, width);
        experts_.forward(ctx, rows_of(batch, tape, rows), tape.plan, parameters.experts, out, workspace);
      }
    }
  }
  const auto& assignments = tape.routing.assignments;
  const Index bound = assignments.bound;

  // Output policies change the gradient on its way: behind the branches for all, before them for the routed part alone.
  auto changed = [&](M dy, auto routed) {
    auto copy = scratch.template matrix<Scalar>(tokens, config_.hidden);
    if (tokens != 0) Kokkos::deep_copy(ctx.space, copy, dy);
    detail::backward_outputs<decltype(routed)::value>(Outputs{}, policies_, ctx, batch, parameters.outputs,
                                                      tape.outputs, copy, gradients.outputs);
    return M(copy);
  };
  M dy = dy_given;
  if constexpr (detail::length < Outputs >> 0) dy = changed(dy, std::false_type{});
  M drouted = dy;
  if constexpr (detail::any_routed<Outputs>) drouted = changed(dy, std::true_type{});

  auto dout = scratch.template matrix<Scalar>(row_count, width),
       drows = scratch.template matrix<Scalar>(row_count, width);
  auto row_weight = scratch.template vector<Real>(row_count), drow_weight = scratch.template vector<Real>(row_count);
  {
    const Stage stage("moe::combine");
    M dsum = drouted;
    if constexpr (has_latent) {
      auto latent_sum = scratch.template matrix<Scalar>(tokens, width);
      latent().leave_backward(ctx, drouted, parameters.latent, tape.latent, latent_sum, gradients.latent);
      dsum = latent_sum;
    }
    gather(ctx, dsum, tape.plan, dout);
    Kokkos::parallel_for("moe::row_weight", Range(ctx.space, 0, row_count),
                         detail::RowWeight<Real, Space>{tape.weight, tape.plan, row_weight});
  }
  {
    const Stage stage("moe::experts");
    if constexpr (weight_on_input) {
      experts_.backward(ctx, dout, tape.plan, parameters.experts, rows_of(batch, tape, rows), *saved, drows,
                        gradients.experts);
      detail::each_row(ctx.space, "moe::weight_gradient", row_count,
                       detail::InputWeightGradientRow<Scalar, Real, Space>{tape.plan, inner_of(batch, tape), row_weight,
                                                                           drows, drow_weight});
    } else if constexpr (requires { &Experts::template backward_weighted<Scalar, Real, Space>; }) {
      experts_.backward_weighted(ctx, dout, row_weight, tape.plan, parameters.experts, rows_of(batch, tape, rows),
                                 *saved, drows, drow_weight, gradients.experts);
    } else {
      detail::each_row(ctx.space, "moe::weight_gradient", row_count,
                       detail::WeightedGradientRow<Scalar, Real, Space>{out, dout, row_weight, drow_weight, tape.plan});
      experts_.backward(ctx, dout, tape.plan, parameters.experts, rows_of(batch, tape, rows), *saved, drows,
                        gradients.experts);
    }
  }
  RoutingGradients<Real, Space> of{scratch.template vector<Real>(bound),
                                   scratch.template matrix<Real>(tokens, config_.experts),
                                   scratch.template matrix<Real>(tokens, config_.experts),
                                   {},
                                   {}};
  {
    const Stage stage("moe::dispatch");
    Kokkos::parallel_for("moe::assignment_gradient", Range(ctx.space, 0, bound),
                         detail::AssignmentGradient<Real, Space>{drow_weight, tape.plan, of.dweight});
    if (capacity_.renormalize != Renormalize::never)
      renormalize_backward(ctx, assignments, tape.plan, capacity_.renormalize, of.dweight);
    detail::shape(tape.dx, "moe::dx", tokens, config_.hidden);
    if constexpr (has_latent) {
      auto dinner = scratch.template matrix<Scalar>(tokens, width);
      scatter_add(ctx, M(drows), tape.plan, dinner);
      latent().enter_backward(ctx, dinner, batch.x, parameters.latent, tape.latent, tape.dx, gradients.latent);
    } else {
      scatter_add(ctx, M(drows), tape.plan, tape.dx);
    }
  }
  // An input of its own gets its own gradient; else the gradient adds to x's.
  auto gradient_of = [&](const auto& input, Matrix<Scalar, Space>& own) {
    if (!input.is_allocated()) return tape.dx;
    detail::shape(own, "moe::dinput", tokens, input.extent(1));
    detail::fill(ctx.space, own, Scalar(0));
    return own;
  };
  {
    const Stage stage("moe::branches");
    detail::backward_branches(Branches{}, policies_, ctx, batch, dy, parameters.branches, tape.branches,
                              gradient_of(batch.branch_input, tape.dbranch_input), gradients.branches);
  }
  {
    const Stage stage("moe::losses");
    detail::fill(ctx.space, of.dscores, Real(0));
    detail::fill(ctx.space, of.dlogits, Real(0));
    if (tape.routing.clean_logits.is_allocated()) {
      of.dclean = scratch.template matrix<Real>(tokens, config_.experts);
      of.ddeviation = scratch.template matrix<Real>(tokens, config_.experts);
      detail::fill(ctx.space, of.dclean, Real(0));
      detail::fill(ctx.space, of.ddeviation, Real(0));
    }
    detail::each_loss(Losses{}, policies_,
                      [&](const auto& loss, Index) { loss.backward(ctx, batch, tape.routing, loss_scale, of); });
  }
  const Stage stage("moe::route");
  router_.backward(ctx, batch, parameters.router, tape.routing, of, gradient_of(batch.router_input, tape.drouter_input),
                   gradients.router);
  if constexpr (has_input_map) {
    detail::each_wide_row(ctx.space, "moe::input_map", tokens, config_.hidden,
                          detail::JitterTokens<Scalar, Space>{tape.dx, tape.dx, tape.input_draws,
                                                              Jitter{std::get<InputMap>(policies_).epsilon}});
  }
  return tape.dx;
}

MOE_NAMESPACE_END
