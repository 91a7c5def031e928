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
  require<ShapeError>(batch.hidden() == config_.hidden, "moe::MoELayer::forward: x has shape (", tokens, ", ",
                      batch.hidden(), "), but hidden is ", config_.hidden, ".");
  require<ShapeError>(tokens < 2 || Index(batch.x.stride(0)) == batch.hidden(),
                      "moe::MoELayer::forward: the rows of x are ", batch.x.stride(0), " apart, but ", batch.hidden(),
                      " wide. Copy the subview into a moe::Matrix first.");
  require<ShapeError>(!batch.mask.is_allocated() || Index(batch.mask.extent(0)) == tokens,
                      "moe::MoELayer::forward: a mask of ", batch.mask.extent(0), " for ", tokens, " tokens.");
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
void MoELayer<Policies...>::route(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const {
  const Kokkos::Profiling::ScopedRegion stage("moe::route");
  router_.forward(ctx, batch, parameters.router, buffers.router, config_.experts, tape.routing, config_.layer);
}

template <class... Policies>
auto MoELayer<Policies...>::run(Context<Space>& ctx, const Batch<Scalar, Space>& batch, Tape& tape) const
    -> Matrix<Scalar, Space> {
  using Stage = Kokkos::Profiling::ScopedRegion;
  tape.owner = id_;
  tape.batch = batch;
  const auto& assignments = tape.routing.assignments;
  {
    const Stage stage("moe::dispatch");
    dispatch(ctx, assignments, batch, config_.experts, capacity_, tape.plan);
    if (capacity_.renormalize == Renormalize::after_drops) {
      detail::shape(tape.weight, "moe::weight", assignments.bound);
      renormalize(ctx, assignments, tape.plan, tape.weight);
    } else {
      tape.weight = assignments.weight;
    }
    detail::shape(tape.rows, "moe::rows", tape.plan.rows, config_.hidden);
    gather(ctx, batch.x, tape.plan, tape.rows);  // (R, H)
  }
  {
    const Stage stage("moe::experts");
    detail::shape(tape.out, "moe::out", tape.plan.rows, config_.hidden);
    experts_.forward(ctx, tape.rows, tape.plan, parameters.experts, tape.out, tape.experts);  // (R, H)
  }
  {
    const Stage stage("moe::combine");
    detail::shape(tape.y, "moe::y", batch.tokens(), config_.hidden);
    combine(ctx, Matrix<const Scalar, Space>(tape.out), Vector<const Real, Space>(tape.weight), tape.plan, tape.y);
  }
  {
    const Stage stage("moe::branches");
    detail::forward_branches(Branches{}, policies_, ctx, batch, parameters.branches, tape.y, tape.branches);
  }
  const Stage stage("moe::losses");
  detail::shape(tape.losses, "moe::losses", detail::length<Losses>);
  detail::fill(ctx.space, tape.losses, 0.0);
  detail::each_loss(Losses{}, policies_, [&](const auto& loss, Index number) {
    loss.value(ctx, batch, tape.routing, Vector<double, Space>(tape.losses.data() + number, 1));
  });
  if constexpr (on_host<Space>) ctx.check();
  return tape.y;
}

template <class... Policies>
auto MoELayer<Policies...>::pull(Context<Space>& ctx, const Matrix<const Scalar, Space>& dy, Tape& tape,
                                 Gradients& gradients, double loss_scale) const -> Matrix<Scalar, Space> {
  detail::require<Error>(tape.owner == id_, "moe::MoELayer::backward: this tape ",
                         tape.owner == 0 ? "is empty. Run forward(ctx, x, tape) first."
                                         : "belongs to another layer. Give the tape of this layer's forward.");
  detail::require<Error>(gradients.owner == id_,
                         "moe::MoELayer::backward: these gradients belong to "
                         "another layer. Make them with gradients().");
  const Batch<Scalar, Space>& batch = tape.batch;
  const Index tokens = batch.tokens(), rows = tape.plan.rows;
  detail::require<ShapeError>(Index(dy.extent(0)) == tokens && Index(dy.extent(1)) == config_.hidden,
                              "moe::MoELayer::backward: dy has shape (", dy.extent(0), ", ", dy.extent(1),
                              "), expected (", tokens, ", ", config_.hidden, ").");
  using Range = Kokkos::RangePolicy<Space>;
  using Stage = Kokkos::Profiling::ScopedRegion;
  typename Context<Space>::Scratch scratch(ctx);
  const auto& assignments = tape.routing.assignments;
  const Index bound = assignments.bound;
  auto dout = scratch.template matrix<Scalar>(rows, config_.hidden);
  auto drows = scratch.template matrix<Scalar>(rows, config_.hidden);
  auto row_weight = scratch.template vector<Real>(rows), drow_weight = scratch.template vector<Real>(rows);
  auto dweight = scratch.template vector<Real>(bound);
  {
    const Stage stage("moe::combine");
    gather(ctx, dy, tape.plan, dout);
    Kokkos::parallel_for("moe::row_weight", Range(ctx.space, 0, rows),
                         detail::RowWeight<Real, Space>{tape.weight, tape.plan, row_weight});
  }
  {
    const Stage stage("moe::experts");
    if constexpr (requires { &Experts::template backward_weighted<Scalar, Real, Space>; }) {
      experts_.backward_weighted(ctx, dout, row_weight, tape.plan, parameters.experts, tape.rows, tape.experts, drows,
                                 drow_weight, gradients.experts);
    } else {
      Kokkos::parallel_for(
          "moe::weight_gradient", Range(ctx.space, 0, rows),
          detail::WeightedGradientRow<Scalar, Real, Space>{tape.out, dout, row_weight, drow_weight, tape.plan});
      experts_.backward(ctx, dout, tape.plan, parameters.experts, tape.rows, tape.experts, drows, gradients.experts);
    }
  }
  {
    const Stage stage("moe::dispatch");
    Kokkos::parallel_for("moe::assignment_gradient", Range(ctx.space, 0, bound),
                         detail::AssignmentGradient<Real, Space>{drow_weight, tape.plan, dweight});
    if (capacity_.renormalize == Renormalize::after_drops) renormalize_backward(ctx, assignments, tape.plan, dweight);
    detail::shape(tape.dx, "moe::dx", tokens, config_.hidden);
    scatter_add(ctx, Matrix<const Scalar, Space>(drows), tape.plan, tape.dx);
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
  auto dscores = scratch.template matrix<Real>(tokens, config_.experts);
  auto dlogits = scratch.template matrix<Real>(tokens, config_.experts);
  {
    const Stage stage("moe::losses");
    detail::fill(ctx.space, dscores, Real(0));
    detail::fill(ctx.space, dlogits, Real(0));
    detail::each_loss(Losses{}, policies_, [&](const auto& loss, Index) {
      loss.backward(ctx, batch, tape.routing, loss_scale, dscores, dlogits);
    });
  }
  const Stage stage("moe::route");
  router_.backward(ctx, batch, parameters.router, tape.routing, Vector<const Real, Space>(dweight), dscores, dlogits,
                   gradient_of(batch.router_input, tape.drouter_input), gradients.router);
  return tape.dx;
}

MOE_NAMESPACE_END
