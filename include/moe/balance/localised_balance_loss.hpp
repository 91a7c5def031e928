#pragma once
/// @file
/// `LocalisedBalanceLoss`: balance inside groups of experts that serve different types of tasks.

#include "moe/balance/losses.hpp"

MOE_NAMESPACE_BEGIN

/// coefficient * var(Z) / (mean(Z)^2 + 1e-10), Z(s, e) = I(s, e) * the sum over sequence s of e's combine weights (Dou
/// et al. 2023, LoRAMoE, eq. 6 to 8). I is 1 + delta where expert and sequence are of one type and 1 - delta elsewhere:
/// sequences of task 1 (Batch::task_ids) with the first half of the experts, all others with the second. The variance
/// is the unbiased one over all S sequences and E experts, as in the authors' code. 0 where weights are in proportion
/// to 1 / I; where one expert has all, sequences are as long and delta is 0: S E (E - 1) / (S E - 1). Throws
/// ConfigError for an odd number of experts.
struct LocalisedBalanceLoss {
  using policy = kind::loss;
  double coefficient = 1e-2;
  double delta = 0.1;

  template <class T, class Real, class Space>
  void value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
             const Vector<double, Space>& slot) const;
  template <class T, class Real, class Space>
  void backward(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing, double scale,
                const RoutingGradients<Real, Space>& to) const;

 private:
  template <class T, class Space>
  void check(const Batch<T, Space>& batch, Index experts) const {
    detail::require<ConfigError>(experts % 2 == 0, "moe::LocalisedBalanceLoss: ", experts,
                                 " experts do not divide into two types. Give it an even number.");
    if (batch.task_ids.is_allocated()) detail::task_sequences("moe::LocalisedBalanceLoss", batch);
  }
};

namespace detail {

/// Z (S, E); one work item a sequence.
template <class Real, class Space>
struct LocalisedImportance {
  Assignments<Real, Space> assignments;
  Groups<Space> sequences;
  Vector<const std::int32_t, Space> tasks;
  double delta;
  Matrix<double, Space> result;

  KOKKOS_FUNCTION double coefficient(Index s, Index e) const {
    const bool first_type = tasks.data() != nullptr && tasks(s) == 1;
    return first_type == (e < Index(result.extent(1)) / 2) ? 1 + delta : 1 - delta;
  }
  KOKKOS_FUNCTION void operator()(Index s) const {
    for (Index e = 0; e < Index(result.extent(1)); ++e) result(s, e) = 0;
    for (Index t = sequences.begin(s); t < sequences.end(s); ++t) {
      for (Index a = assignments.begin(t); a < assignments.end(t); ++a) {
        if (assignments.expert(a) != no_expert) result(s, assignments.expert(a)) += double(assignments.weight(a));
      }
    }
    for (Index e = 0; e < Index(result.extent(1)); ++e) result(s, e) *= coefficient(s, e);
  }
};

/// The value into slot, or d value / d Z in the place of Z; one work item.
template <class Space>
struct LocalisedVariation {
  Matrix<double, Space> z;
  double factor;
  Vector<double, Space> slot;  // empty: the slopes are wanted
  KOKKOS_FUNCTION void operator()(Index) const {
    const Index rows = z.extent(0), columns = z.extent(1);
    const double n = double(rows * columns);
    double mean = 0, variance = 0;
    for (Index s = 0; s < rows; ++s) {
      for (Index e = 0; e < columns; ++e) mean += z(s, e) / n;
    }
    for (Index s = 0; s < rows; ++s) {
      for (Index e = 0; e < columns; ++e) variance += (z(s, e) - mean) * (z(s, e) - mean) / (n - 1);
    }
    const double divisor = mean * mean + 1e-10;
    if (slot.data() != nullptr) {
      slot(0) += factor * variance / divisor;
      return;
    }
    for (Index s = 0; s < rows; ++s) {
      for (Index e = 0; e < columns; ++e) {
        const double dvariance = 2 * (z(s, e) - mean) / (n - 1), dmean = -variance / divisor * 2 * mean / n;
        z(s, e) = factor * (dvariance + dmean) / divisor;
      }
    }
  }
};

template <class Real, class Space>
struct LocalisedGradient {
  LocalisedImportance<Real, Space> slope;
  Vector<Real, Space> dweight;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const auto& a = slope.assignments;
    const Index s = slope.sequences.of(t);
    for (Index i = a.begin(t); i < a.end(t); ++i) {
      if (a.expert(i) != no_expert)
        dweight(i) += Real(slope.result(s, a.expert(i)) * slope.coefficient(s, a.expert(i)));
    }
  }
};

template <class T, class Real, class Space>
LocalisedImportance<Real, Space> localised_importance(Context<Space>& ctx, typename Context<Space>::Scratch& scratch,
                                                      const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
                                                      double delta) {
  const auto sequences = groups(Scope::sequence(), batch);
  const LocalisedImportance<Real, Space> importance{
      routing.assignments, sequences, batch.task_ids, delta,
      scratch.template matrix<double>(sequences.count, routing.logits.extent(1))};
  Kokkos::parallel_for("moe::LocalisedBalanceLoss::importance", Range<Space>(ctx.space, 0, sequences.count),
                       importance);
  return importance;
}

}  // namespace detail

template <class T, class Real, class Space>
void LocalisedBalanceLoss::value(Context<Space>& ctx, const Batch<T, Space>& batch, const Routing<Real, Space>& routing,
                                 const Vector<double, Space>& slot) const {
  check(batch, Index(routing.logits.extent(1)));
  if (batch.tokens() == 0) return;
  typename Context<Space>::Scratch scratch(ctx);
  const auto importance = detail::localised_importance(ctx, scratch, batch, routing, delta);
  Kokkos::parallel_for("moe::LocalisedBalanceLoss", detail::Range<Space>(ctx.space, 0, 1),
                       detail::LocalisedVariation<Space>{importance.result, coefficient, slot});
}

template <class T, class Real, class Space>
void LocalisedBalanceLoss::backward(Context<Space>& ctx, const Batch<T, Space>& batch,
                                    const Routing<Real, Space>& routing, double scale,
                                    const RoutingGradients<Real, Space>& to) const {
  check(batch, Index(routing.logits.extent(1)));
  if (batch.tokens() == 0) return;
  typename Context<Space>::Scratch scratch(ctx);
  const auto importance = detail::localised_importance(ctx, scratch, batch, routing, delta);
  Kokkos::parallel_for("moe::LocalisedBalanceLoss", detail::Range<Space>(ctx.space, 0, 1),
                       detail::LocalisedVariation<Space>{importance.result, scale * coefficient, {}});
  Kokkos::parallel_for("moe::LocalisedBalanceLoss::backward", detail::Range<Space>(ctx.space, 0, batch.tokens()),
                       detail::LocalisedGradient<Real, Space>{importance, to.dweight});
}

MOE_NAMESPACE_END
