#pragma once
/// @file
/// BalanceStatistics' sums and kernels.

#include "moe/balance/load.hpp"
#include "moe/core/each_row.hpp"
#include "moe/core/exp.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// Everything that adds up over microbatches, steps and ranks: integers, exact in any order, and numbers.
template <class Space>
struct BalanceSums {
  Vector<Index, Space> counts;  // last (E), total (E), tokens (1), history (B, E), pairs (E, E) or none
  Vector<double, Space> sums;   // average (E), violation, its steps, entropy, its tokens
  Index experts = 0, buckets = 0;

  static Index count_size(Index experts, Index buckets, bool pairs) {
    return 2 * experts + 1 + buckets * experts + (pairs ? experts * experts : 0);
  }
  KOKKOS_FUNCTION Index& last(Index e) const { return counts(e); }
  KOKKOS_FUNCTION Index& total(Index e) const { return counts(experts + e); }
  KOKKOS_FUNCTION Index& tokens() const { return counts(2 * experts); }
  KOKKOS_FUNCTION Index& history(Index b, Index e) const { return counts(2 * experts + 1 + b * experts + e); }
  /// The tokens that chose both, for i <= j.
  KOKKOS_FUNCTION Index& pairs(Index i, Index j) const {
    return counts(2 * experts + 1 + buckets * experts + i * experts + j);
  }
  KOKKOS_FUNCTION double& average(Index e) const { return sums(e); }
  KOKKOS_FUNCTION double& violation() const { return sums(experts); }
  KOKKOS_FUNCTION double& steps() const { return sums(experts + 1); }
  KOKKOS_FUNCTION double& entropy() const { return sums(experts + 2); }
  KOKKOS_FUNCTION double& entropy_tokens() const { return sums(experts + 3); }
};

/// The entropy of softmax(z) of one token, and the pairs of its choices.
template <class Real, class Space>
struct TokenStatistics {
  Matrix<Real, Space> logits;
  Assignments<Real, Space> assignments;
  Vector<const std::uint8_t, Space> mask;
  Index pairs_of;
  BalanceSums<Space> sums;
  Vector<double, Space> entropies;

  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    if (is_padding<Space>(mask, t)) {
      team.single([&] { entropies(t) = 0; });
      return;
    }
    const Row<Real> z = row_of(logits, t);
    const Real top = team.max<Real>(z.size, [&](Index e) { return z[e]; });
    const Real total = team.sum<Real>(z.size, [&](Index e) { return detail::exp(z[e] - top); });
    const Real inner = team.sum<Real>(z.size, [&](Index e) {
      const Real p = detail::exp(z[e] - top);
      return p > 0 ? p * (z[e] - top) : Real(0);  // of a closed expert: 0, not 0 times infinity
    });
    team.single([&] { entropies(t) = double(Kokkos::log(total) - inner / total); });
    if (pairs_of == 0 || t % pairs_of != 0) return;
    const Index begin = assignments.begin(t), k = assignments.end(t) - begin;
    team.each(k * k, [&](Index pair) {
      const Index a = pair / k, b = pair % k;
      const ExpertId i = assignments.expert(begin + a), j = assignments.expert(begin + b);
      if (i != no_expert && j != no_expert && (a == b || i < j)) Kokkos::atomic_inc(&sums.pairs(i, j));
    });
  }
};

template <class Space>
struct AddEntropies {
  Vector<double, Space> entropies;
  Vector<const std::uint8_t, Space> mask;
  Index tokens;
  BalanceSums<Space> sums;
  KOKKOS_FUNCTION void operator()(Index, const Team& team) const {
    const double sum = team.sum<double>(tokens, [&](Index t) { return entropies(t); });
    const double live = team.sum<double>(tokens, [&](Index t) { return is_padding<Space>(mask, t) ? 0.0 : 1.0; });
    team.single([&] {
      sums.entropy() += sum;
      sums.entropy_tokens() += live;
    });
  }
};

/// The end of a step for one expert. When all buckets are full, neighbours become one, and half are free again.
template <class Space>
struct EndStep {
  Vector<const Index, Space> load, tokens;
  double decay;
  Vector<Index, Space> clock;  // steps, steps a bucket
  BalanceSums<Space> sums;
  KOKKOS_FUNCTION void operator()(Index e) const {
    const Index n = load(e), steps = clock(0), span = clock(1);
    sums.last(e) = n;
    sums.total(e) += n;
    sums.average(e) = steps == 0 ? double(n) : decay * sums.average(e) + (1 - decay) * double(n);
    sums.history(steps / span, e) += n;
    if (steps + 1 < sums.buckets * span) return;
    for (Index b = 0; b < sums.buckets; ++b)
      sums.history(b, e) = b < sums.buckets / 2 ? sums.history(2 * b, e) + sums.history(2 * b + 1, e) : 0;
  }
};

/// What remains when EndStep is through with all experts; one work item.
template <class Space>
struct EndStepOfAll {
  EndStep<Space> step;
  KOKKOS_FUNCTION void operator()(Index) const {
    const BalanceSums<Space>& sums = step.sums;
    Index most = 0, all = 0;
    for (Index e = 0; e < sums.experts; ++e) {
      most = step.load(e) > most ? step.load(e) : most;
      all += step.load(e);
    }
    if (all > 0) {
      sums.violation() += double(most) * double(sums.experts) / double(all) - 1;
      sums.steps() += 1;
    }
    sums.tokens() += step.tokens(0);
    step.clock(0) += 1;
    if (step.clock(0) == sums.buckets * step.clock(1)) step.clock(1) *= 2;
  }
};

}  // namespace detail

MOE_NAMESPACE_END
