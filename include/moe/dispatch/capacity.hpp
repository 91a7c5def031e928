#pragma once
/// @file
/// Capacity: how many assignments an expert takes, and which are dropped when more ask for it.
///
/// Positions in an expert's queue count every assignment to it, dropped ones too: since the dropped are always the tail
/// of the queue, this and counting the kept alone give the same result.

#include <cmath>

#include "moe/core/assignments.hpp"
#include "moe/core/context.hpp"

MOE_NAMESPACE_BEGIN

/// Every assignment is kept.
struct Dropless {};
/// Experts take at most C assignments a group; the rest are dropped. Row extents follow the live rows.
struct Drop {};
/// `Drop` with fixed row extents: every expert has exactly G*C rows, the unused ones padding (row_token -1).
struct Pad {};

/// Who comes first in an expert's queue.
enum class Priority {
  position,  ///< token order, then choice order (Switch)
  choice,    ///< all first choices before all second ones, each in token order (GShard)
  score      ///< by combine weight, largest first, ties by position (for K = 1: batch priority, Riquelme et al. 2021)
};

/// How the capacity factor's product becomes a whole number.
enum class Rounding { ceiling, floor };

/// When a token's remaining weights are normalised to sum to what they summed to before its drops.
enum class Renormalize { never, after_drops };

/// The capacity of an expert, all of it explicit. `Mode` is Dropless, Drop or Pad.
template <class Mode = Dropless>
struct CapacityPolicy {
  using policy = kind::capacity;
  using mode = Mode;
  static constexpr bool drops = !std::is_same_v<Mode, Dropless>;
  static constexpr bool pads = std::is_same_v<Mode, Pad>;

  double factor = 1.25;         ///< C = factor * K * n / E for a group of n tokens
  Index tokens_per_expert = 0;  ///< C itself, where positive, instead of the factor
  Rounding rounding = Rounding::ceiling;
  Index minimum = 1;             ///< C is at least this (GShard: 4)
  Scope scope = Scope::batch();  ///< the tokens that share a C
  Priority priority = Priority::position;
  Renormalize renormalize = Renormalize::never;

  void check() const {
    if (!drops) return;
    detail::require<ConfigError>(tokens_per_expert > 0 || factor > 0, "moe::CapacityPolicy: factor is ", factor,
                                 "; it must be positive (1.25 is usual), or set tokens_per_expert.");
    detail::require<ConfigError>(minimum >= 0, "moe::CapacityPolicy: minimum is ", minimum, "; it cannot be negative.");
  }

  /// C for a group of n tokens, padding not counted, with K choices each (in ragged lists: their bound over the
  /// tokens).
  KOKKOS_FUNCTION Index limit(Index n, double k, Index experts) const {
    if (tokens_per_expert > 0) return tokens_per_expert;
    const double exact = factor * k * double(n) / double(experts);
    // A product such as 1.1 * 10 must not round up because of its last bit.
    const Index c =
        rounding == Rounding::ceiling ? Index(Kokkos::ceil(exact - 1e-9)) : Index(Kokkos::floor(exact + 1e-9));
    return c < minimum ? minimum : c;
  }
};

namespace detail {

/// Walks the queue of one group in its order and keeps what fits. Serial in a group, groups side by side.
template <class Real, class Space, class Capacity>
struct KeepInGroup {
  Capacity capacity;
  Groups<Space> groups;
  Assignments<Real, Space> assignments;
  Vector<const std::uint8_t, Space> mask;
  Index experts;
  double k;
  Vector<Index, Space> order, merge;  // (A) scratch, for priority by score
  Vector<Index, Space> used;          // (G*E) zeros
  Vector<std::uint8_t, Space> kept;   // (A)

  KOKKOS_FUNCTION void take(Index a, Index limit, Index* queue) const {
    const ExpertId e = assignments.expert(a);
    kept(a) = e != no_expert && queue[e] < limit;
    if (e != no_expert) ++queue[e];
  }

  /// Stable merge sort of order[begin, end) by weight, largest first.
  KOKKOS_FUNCTION void sort(Index begin, Index end) const {
    Index *from = order.data(), *to = merge.data();
    for (Index width = 1; width < end - begin; width *= 2) {
      for (Index low = begin; low < end; low += 2 * width) {
        const Index middle = low + width < end ? low + width : end;
        const Index high = middle + width < end ? middle + width : end;
        for (Index i = low, j = middle, o = low; o < high; ++o) {
          const bool right = i == middle || (j < high && assignments.weight(from[j]) > assignments.weight(from[i]));
          to[o] = right ? from[j++] : from[i++];
        }
      }
      Index* swapped = from;
      from = to;
      to = swapped;
    }
    if (from != order.data()) {
      for (Index a = begin; a < end; ++a) order(a) = from[a];
    }
  }

  KOKKOS_FUNCTION void operator()(Index g) const {
    const Index first = groups.begin(g), last = groups.end(g);
    const Index begin = assignments.begin(first), end = first < last ? assignments.end(last - 1) : begin;
    const Index limit = capacity.limit(live_tokens<Space>(mask, first, last), k, experts);
    Index* queue = used.data() + g * experts;
    if (capacity.priority == Priority::choice) {
      Index longest = 0;
      for (Index t = first; t < last; ++t) {
        const Index size = assignments.end(t) - assignments.begin(t);
        longest = size > longest ? size : longest;
      }
      for (Index choice = 0; choice < longest; ++choice) {
        for (Index t = first; t < last; ++t) {
          if (assignments.begin(t) + choice < assignments.end(t)) take(assignments.begin(t) + choice, limit, queue);
        }
      }
    } else if (capacity.priority == Priority::score) {
      for (Index a = begin; a < end; ++a) order(a) = a;
      sort(begin, end);
      for (Index i = begin; i < end; ++i) take(order(i), limit, queue);
    } else {
      for (Index a = begin; a < end; ++a) take(a, limit, queue);
    }
  }
};

/// Marks in `kept` (A) the assignments that the capacity lets through.
template <class T, class Real, class Space, class Mode>
void keep(Context<Space>& ctx, const CapacityPolicy<Mode>& capacity, const Assignments<Real, Space>& assignments,
          const Batch<T, Space>& batch, Index experts, double k, const Vector<std::uint8_t, Space>& kept) {
  capacity.check();
  const auto groups = detail::groups(capacity.scope, batch);
  typename Context<Space>::Scratch scratch(ctx);
  const Index sorted = capacity.priority == Priority::score ? assignments.bound : 0;
  auto order = scratch.template vector<Index>(sorted), merge = scratch.template vector<Index>(sorted);
  auto used = scratch.template vector<Index>(groups.count * experts);
  fill(ctx.space, used, Index(0));
  fill(ctx.space, kept, std::uint8_t(0));
  Kokkos::parallel_for("moe::capacity",
                       Kokkos::RangePolicy<Space>(ctx.space, 0, batch.tokens() == 0 ? 0 : groups.count),
                       KeepInGroup<Real, Space, CapacityPolicy<Mode>>{capacity, groups, assignments, batch.mask,
                                                                      experts, k, order, merge, used, kept});
}

}  // namespace detail

MOE_NAMESPACE_END
