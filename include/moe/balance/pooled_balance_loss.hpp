#pragma once
/// @file
/// `PooledBalanceLoss`: loads counted over more than the batch: microbatches, ranks or layers.

#include "moe/balance/losses.hpp"

MOE_NAMESPACE_BEGIN

/// coefficient * E * sum_e f_e P_e: f_e the share of e in `counts`, P_e the mean over this batch of e's score over the
/// sum of scores. 1 at balance, E / K where K experts have all. What is in `counts` says which loss it is:
///
/// - all microbatches of a step so far, and by LoadStatistics::all_reduce all ranks: the global-batch balance of Qiu et
///   al. 2025, "Demons in the detail", which lets a sequence of one domain use few experts;
/// - all layers of a model: transformers' load_balancing_loss_func, with coefficient K c / layers (K c at balance).
///
///     moe::LoadStatistics<> pooled(experts);
///     moe::PooledBalanceLoss<> loss{1e-2, pooled.counts()};   // into each layer
///     for (...) layer.forward(ctx, x, tape), pooled.add(tape);
///     for (...) layer.backward(ctx, dy, tape, gradients);     // reads what was counted until here
///
/// Counts are read when backward runs. The tape's value is that of the counts as they are when forward runs;
/// `evaluate_losses` of a MoELayer computes it anew. Without counts above 0 the loss is 0. Throws ShapeError where
/// counts are not (E).
template <class Space = Kokkos::DefaultExecutionSpace>
struct PooledBalanceLoss : detail::BalanceLossPolicy<PooledBalanceLoss<Space>> {
  using policy = kind::loss;
  double coefficient = 1e-2;
  Vector<const Index, Space> counts;  ///< (E), as LoadStatistics::counts()

  explicit PooledBalanceLoss(double c = 1e-2, const Vector<const Index, Space>& n = {}) : coefficient(c), counts(n) {}

  template <class T, class Real>
  void value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
             const Vector<double, Space>& slot) const {
    check(Index(routing.logits.extent(1)));
    Shared::value(ctx, batch, routing, slot);
  }
  template <class T, class Real>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing, double scale,
                const RoutingGradients<Real, Space>& to) const {
    check(Index(routing.logits.extent(1)));
    Shared::backward(ctx, batch, routing, scale, to);
  }
  detail::BalanceRule rule(double experts) const {
    return {coefficient * experts, Count::all, Scope::batch(), Probability::normalized_scores, true};
  }

 private:
  using Shared = detail::BalanceLossPolicy<PooledBalanceLoss<Space>>;
  void check(Index experts) const {
    detail::require<ShapeError>(Index(counts.extent(0)) == experts, "moe::PooledBalanceLoss: counts of ",
                                counts.extent(0), " experts for a router of ", experts,
                                ". Set `counts` to the counts() of a LoadStatistics made for as many experts.");
  }
};

MOE_NAMESPACE_END
