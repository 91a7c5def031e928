#pragma once
/// @file
/// Which assignments a capacity lets through: one walk of each group's queue.
///
/// Every assignment takes a place in its queue, dropped ones too: since the dropped are always the tail of a queue,
/// this and counting the kept alone give the same result.

#include "moe/core/assignments.hpp"
#include "moe/core/context.hpp"
#include "moe/dispatch/capacity.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// Index of the draw that exempts a sequence; Priority::random draws by the ranks of choices, far below it.
inline constexpr std::uint32_t exempt_draw = 0xFFFFFFFFu;

/// exempt(a) = 1 for every assignment of the sequences that a draw takes out of dropping.
template <class Real, class Space>
struct MarkExempt {
  Assignments<Real, Space> assignments;
  Groups<Space> sequences;
  RandomKey key;
  Index first_token;
  double fraction;
  Vector<std::uint8_t, Space> exempt;  // (A)

  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index first = sequences.begin(sequences.of(t));
    const bool drawn = random_uniform<double>(key, std::uint64_t(first_token + first), exempt_draw) < fraction;
    for (Index a = assignments.begin(t); a < assignments.end(t); ++a) exempt(a) = drawn ? 1 : 0;
  }
};

/// Indices of a group in a stable order of descending keys.
template <class Space>
struct Sorter {
  Vector<double, Space> key;
  Vector<Index, Space> order, merge;

  /// order[begin, end) becomes begin, ..., end - 1 sorted: a merge sort, from short runs to long ones.
  KOKKOS_FUNCTION void sort(Index begin, Index end) const {
    for (Index i = begin; i < end; ++i) order(i) = i;
    Index *from = order.data(), *to = merge.data();
    for (Index width = 1; width < end - begin; width *= 2) {
      for (Index low = begin; low < end; low += 2 * width) {
        const Index middle = low + width < end ? low + width : end;
        const Index high = middle + width < end ? middle + width : end;
        for (Index i = low, j = middle, o = low; o < high; ++o) {
          const bool right = i == middle || (j < high && key(from[j]) > key(from[i]));
          to[o] = right ? from[j++] : from[i++];
        }
      }
      Index* swapped = from;
      from = to;
      to = swapped;
    }
    if (from != order.data()) {
      for (Index i = begin; i < end; ++i) order(i) = from[i];
    }
  }
};

/// Walks the queue of one group in its order and keeps what fits. Serial in a group, groups side by side.
template <class Real, class Space, class Capacity>
struct KeepInGroup {
  Capacity capacity;
  Groups<Space> groups;
  Assignments<Real, Space> assignments;
  Vector<const std::uint8_t, Space> mask;
  Index experts;
  double k;
  RandomKey key;
  Index first_token;
  Vector<std::uint8_t, Space> exempt;  // (A), or empty: none
  Sorter<Space> sorter;                // of assignments by score, of tokens by batch priority and at random
  Vector<Index, Space> used;           // (G*B) zeros: places taken of each of a group's B budgets
  Vector<std::uint8_t, Space> kept;    // (A) zeros

  KOKKOS_FUNCTION bool is_exempt(Index a) const { return exempt.data() != nullptr && exempt(a) != 0; }

  /// Is `a` an assignment at all?
  KOKKOS_FUNCTION bool asks(Index a) const { return assignments.expert(a) != no_expert && assignments.is_live(a); }

  KOKKOS_FUNCTION Index& places(Index a, Index g) const {
    const Index budgets = capacity.budgets(experts);
    return used(g * budgets + assignments.expert(a) / (experts / budgets));
  }

  KOKKOS_FUNCTION void take(Index a, Index g, Index limit) const {
    if (asks(a) && !is_exempt(a)) kept(a) = places(a, g)++ < limit;
  }

  /// Sorts the tokens [first, last) for their choices of one rank.
  KOKKOS_FUNCTION void sort_tokens(Index first, Index last, Index rank) const {
    for (Index t = first; t < last; ++t) {
      if (capacity.priority == Priority::random) {
        sorter.key(t) = double(random_bits(key, std::uint64_t(first_token + t), std::uint32_t(rank)));
      } else {
        const bool any = assignments.begin(t) < assignments.end(t);
        sorter.key(t) = any ? double(assignments.weight(assignments.begin(t))) : 0;
      }
    }
    sorter.sort(first, last);
  }

  /// All choices of one rank before those of the next.
  KOKKOS_FUNCTION void walk_ranks(Index g, Index limit) const {
    const Index first = groups.begin(g), last = groups.end(g);
    const bool drawn = capacity.priority == Priority::random, by_batch = capacity.priority == Priority::batch;
    Index longest = 0;
    for (Index t = first; t < last; ++t) {
      const Index size = assignments.end(t) - assignments.begin(t);
      longest = size > longest ? size : longest;
    }
    for (Index rank = 0; rank < longest; ++rank) {
      if (drawn || (by_batch && rank == 0)) sort_tokens(first, last, rank);
      for (Index i = first; i < last; ++i) {
        const Index t = drawn || by_batch ? sorter.order(i) : i;
        if (assignments.begin(t) + rank < assignments.end(t)) take(assignments.begin(t) + rank, g, limit);
      }
    }
  }

  KOKKOS_FUNCTION void operator()(Index g) const {
    const Index first = groups.begin(g), last = groups.end(g);
    if (first == last) return;
    const Index begin = assignments.begin(first), end = assignments.end(last - 1);
    const Index limit = capacity.limit(live_tokens<Space>(mask, first, last), k, experts);
    for (Index a = begin; a < end; ++a) {
      if (!asks(a) || !is_exempt(a)) continue;
      kept(a) = 1;
      ++places(a, g);
    }
    if (capacity.priority == Priority::score) {
      for (Index a = begin; a < end; ++a) sorter.key(a) = double(assignments.weight(a));
      sorter.sort(begin, end);
      for (Index i = begin; i < end; ++i) take(sorter.order(i), g, limit);
    } else if (capacity.priority == Priority::position) {
      for (Index a = begin; a < end; ++a) take(a, g, limit);
    } else {
      walk_ranks(g, limit);
    }
  }
};

/// Marks in `kept` (A) the assignments that a checked capacity lets through.
template <class T, class Real, class Space, class Mode>
void keep(Context<Space>& ctx, const CapacityPolicy<Mode>& capacity, const Assignments<Real, Space>& assignments,
          const Batch<T, Space>& batch, Index experts, double k, std::uint32_t layer,
          const Vector<std::uint8_t, Space>& kept) {
  using Range = detail::Range<Space>;
  const auto groups = detail::groups(capacity.scope, batch);
  typename Context<Space>::Scratch scratch(ctx);
  Vector<std::uint8_t, Space> exempt;
  if (ctx.training && capacity.exempt_fraction > 0) {
    exempt = scratch.template vector<std::uint8_t>(assignments.bound);
    const RandomKey key{ctx.seed, ctx.step, 0, Purpose::shuffle};  // of no layer: a sequence is exempt in all
    Kokkos::parallel_for("moe::capacity::exempt", Range(ctx.space, 0, assignments.tokens),
                         MarkExempt<Real, Space>{assignments, detail::groups(Scope::sequence(), batch), key,
                                                 ctx.first_token, capacity.exempt_fraction, exempt});
  }
  const bool tokens = capacity.priority == Priority::batch || capacity.priority == Priority::random;
  const Index sorted = tokens ? assignments.tokens : capacity.priority == Priority::score ? assignments.bound : 0;
  const Sorter<Space> sorter{scratch.template vector<double>(sorted), scratch.template vector<Index>(sorted),
                             scratch.template vector<Index>(sorted)};
  auto used = scratch.template vector<Index>(groups.count * capacity.budgets(experts));
  fill(ctx.space, used, Index(0));
  fill(ctx.space, kept, std::uint8_t(0));
  const RandomKey key{ctx.seed, ctx.step, layer, Purpose::shuffle};
  Kokkos::parallel_for(
      "moe::capacity", Range(ctx.space, 0, batch.tokens() == 0 ? 0 : groups.count),
      KeepInGroup<Real, Space, CapacityPolicy<Mode>>{capacity, groups, assignments, batch.mask, experts, k, key,
                                                     ctx.first_token, exempt, sorter, used, kept});
}

}  // namespace detail

MOE_NAMESPACE_END
