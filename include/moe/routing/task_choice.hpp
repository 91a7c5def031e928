#pragma once
/// @file
/// `TaskChoice`: the expert of a sequence's own number.

#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// One expert: that of Batch::task_ids, one a sequence; -1 is none. For experts or adapters that belong to tasks, users
/// or samples. Other ids outside 0 to E - 1 are reported as a DataError.
struct TaskChoice {
  using policy = kind::selection;
  static constexpr bool takes_team = true;
  static constexpr bool ignores_keys = true;

  Index choices() const { return 1; }
  void check(const RouterShape&) const {}

  /// Throws ShapeError where the batch has no task for each sequence.
  template <class T, class Space>
  void check_batch(const Batch<T, Space>& batch) const {
    detail::task_sequences("moe::TaskChoice", batch);
  }

  template <class Real>
  KOKKOS_FUNCTION void select(const Team& team, Row<Real> key, Row<ExpertId> chosen, const TokenFacts& token) const {
    const bool known = token.task >= -1 && token.task < key.size;
    team.each(chosen.size, [&](Index i) { chosen[i] = known ? ExpertId(token.task) : ExpertId(-2); });
  }
};

MOE_NAMESPACE_END
