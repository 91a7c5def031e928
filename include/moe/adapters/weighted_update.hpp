#pragma once
/// @file
/// Weighted sums of low-rank updates, as one update of the sum of their ranks.

#include <vector>

#include "moe/adapters/low_rank.hpp"
#include "moe/core/each_row.hpp"

MOE_NAMESPACE_BEGIN

/// A term of a sum of updates: scaling * B_n A_n of update n.
struct WeightedUpdate {
  Index number = 0;    ///< n
  double scaling = 1;  ///< alpha / r, times the term's weight in the sum
};

namespace detail {

/// Throws ConfigError for a sum of nothing, or of an update that is not there.
template <class T, class Space>
void check_updates(const char* where, const LowRank<T, Space>& update, const std::vector<WeightedUpdate>& of) {
  require<ConfigError>(!of.empty(), where, ": a sum of no updates. Name at least one.");
  for (const WeightedUpdate& term : of) {
    require<ConfigError>(term.number >= 0 && term.number < update.adapters(), where, ": update ", term.number, " of ",
                         update.adapters(), ".");
  }
}

/// One term's part of the stacked factors.
template <class T, class Real, class Space>
struct StackUpdate {
  LowRank<T, Space> update;
  Index number, at;  // at: of its first column
  Real scaling;
  Matrix<Real, Space> b, a;
  KOKKOS_FUNCTION void operator()(Index row, const Team& team) const {
    const Index rank = update.b.extent(2), out = b.extent(0);
    if (row < out) {
      team.each(rank, [&](Index k) { b(row, at + k) = scaling * Real(update.b(number, row, k)); });
    } else {
      const Index k = row - out, from = update.a.extent(0) == 1 ? 0 : number;
      team.each(Index(a.extent(1)), [&](Index i) { a(at + k, i) = Real(update.a(from, k, i)); });
    }
  }
};

/// b (out, terms * r), scalings included, and a (terms * r, in): b a is the sum of the updates.
template <class T, class Real, class Space>
void stack_updates(const Space& space, const LowRank<T, Space>& update, const std::vector<WeightedUpdate>& of,
                   const Matrix<Real, Space>& b, const Matrix<Real, Space>& a) {
  Index at = 0;
  for (const WeightedUpdate& term : of) {
    each_wide_row(space, "moe::stack_updates", update.out() + update.rank(), update.in(),
                  StackUpdate<T, Real, Space>{update, term.number, at, Real(term.scaling), b, a});
    at += update.rank();
  }
}

}  // namespace detail

MOE_NAMESPACE_END
