#pragma once
/// @file
/// Expert choice (Zhou et al. 2022): each expert takes its best tokens, so loads are equal and token lists ragged.
///
/// A selection over many tokens is a struct with `using policy = moe::kind::selection;` and
///
///     template <class T, class Space>
///     Index bound(const Batch<T, Space>&, Index experts) const;       // the most assignments a batch can get
///     template <class T, class Real, class Space>
///     void select(Context<Space>&, const Matrix<Real, Space>& keys, const Batch<T, Space>&,
///                 Assignments<Real, Space>&) const;                   // fills token_offsets and expert

#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// In each group of n tokens every expert takes its capacity_factor * n / E best (at least one), by score over experts;
/// of equal scores the earlier token. Padding is never taken and not counted in n. No gradient flows through the
/// choice.
struct ExpertChoice {
  using policy = kind::selection;
  double capacity_factor = 2;    ///< mean number of experts a token gets
  Scope scope = Scope::batch();  ///< the tokens that compete; a sequence keeps sequences apart
  Index tokens_per_expert = 0;   ///< instead of the factor, where positive

  void check(const RouterShape&) const {
    detail::require<ConfigError>(tokens_per_expert > 0 || capacity_factor > 0, "moe::ExpertChoice: capacity_factor is ",
                                 capacity_factor, "; it must be positive.");
  }

  /// The tokens each expert takes in a group of n, padding not counted.
  KOKKOS_FUNCTION Index capacity(Index n, Index experts) const {
    if (n == 0) return 0;
    Index c = tokens_per_expert > 0 ? tokens_per_expert : Index(capacity_factor * double(n) / double(experts));
    c = c < 1 ? 1 : c;
    return c < n ? c : n;
  }

  template <class T, class Space>
  Index bound(const Batch<T, Space>& batch, Index experts) const {
    const auto groups = detail::groups(scope, batch);
    const Index tokens = batch.tokens();
    if (groups.stride != 0) return tokens == 0 ? 0 : groups.count * experts * capacity(groups.stride, experts);
    const Index most = tokens_per_expert > 0 ? groups.count * experts * tokens_per_expert
                                             : Index(capacity_factor * double(tokens)) + groups.count * experts;
    return most < tokens * experts ? most : tokens * experts;
  }

  template <class T, class Real, class Space>
  void select(Context<Space>& ctx, const Matrix<Real, Space>& keys, const Batch<T, Space>& batch,
              Assignments<Real, Space>& assignments) const;
};

namespace detail {

/// Marks the tokens that expert e of group g takes: a heap whose root is the worst token kept.
template <class Real, class Space>
struct ExpertTakes {
  ExpertChoice policy;
  Groups<Space> groups;
  Matrix<Real, Space> keys;                // (T, E)
  Vector<const std::uint8_t, Space> mask;  // (T) or empty
  Vector<Index, Space> heaps;              // (bound) scratch
  Index heap_size;                         // a heap's extent in it
  Matrix<std::uint8_t, Space> taken;       // (T, E) zeros

  KOKKOS_FUNCTION bool worse(Index a, Index b, Index e) const {
    return keys(a, e) < keys(b, e) || (keys(a, e) == keys(b, e) && a > b);
  }

  KOKKOS_FUNCTION void sift_down(Index* heap, Index size, Index e) const {
    for (Index i = 0, child = 1; child < size; i = child, child = 2 * i + 1) {
      if (child + 1 < size && worse(heap[child + 1], heap[child], e)) ++child;
      if (!worse(heap[child], heap[i], e)) break;
      const Index moved = heap[i];
      heap[i] = heap[child];
      heap[child] = moved;
    }
  }

  KOKKOS_FUNCTION void sift_up(Index* heap, Index i, Index e) const {
    for (Index parent = (i - 1) / 2; i > 0 && worse(heap[i], heap[parent], e); i = parent, parent = (i - 1) / 2) {
      const Index moved = heap[i];
      heap[i] = heap[parent];
      heap[parent] = moved;
    }
  }

  KOKKOS_FUNCTION void operator()(Index item) const {
    const Index experts = keys.extent(1), g = item / experts, e = item % experts;
    const Index begin = groups.begin(g), end = groups.end(g),
                limit = policy.capacity(live_tokens<Space>(mask, begin, end), experts);
    Index* heap = heaps.data() + item * heap_size;
    Index size = 0;
    for (Index t = begin; t < end; ++t) {
      if (is_padding<Space>(mask, t) || !(keys(t, e) > -Kokkos::Experimental::infinity_v<Real>)) continue;
      if (size < limit) {
        heap[size] = t;
        sift_up(heap, size++, e);
      } else if (worse(heap[0], t, e)) {
        heap[0] = t;
        sift_down(heap, size, e);
      }
    }
    for (Index i = 0; i < size; ++i) taken(heap[i], e) = 1;
  }
};

/// Token offsets from the marks: one inclusive scan over tokens.
template <class Space>
struct CountTaken {
  Matrix<std::uint8_t, Space> taken;
  Vector<Index, Space> offsets;  // (T+1)
  KOKKOS_FUNCTION void operator()(Index t, Index& sum, bool final) const {
    for (Index e = 0; e < Index(taken.extent(1)); ++e) sum += taken(t, e);
    if (!final) return;
    offsets(t + 1) = sum;
    if (t == 0) offsets(0) = 0;
  }
};

/// The transpose: experts of a token in ascending order.
template <class Space>
struct ListTaken {
  Matrix<std::uint8_t, Space> taken;
  Vector<Index, Space> offsets;
  Vector<ExpertId, Space> expert;
  KOKKOS_FUNCTION void operator()(Index t) const {
    Index a = offsets(t);
    for (Index e = 0; e < Index(taken.extent(1)); ++e) {
      if (taken(t, e)) expert(a++) = ExpertId(e);
    }
  }
};

}  // namespace detail

template <class T, class Real, class Space>
void ExpertChoice::select(Context<Space>& ctx, const Matrix<Real, Space>& keys, const Batch<T, Space>& batch,
                          Assignments<Real, Space>& assignments) const {
  const Index tokens = keys.extent(0), experts = keys.extent(1);
  const auto groups = detail::groups(scope, batch);
  typename Context<Space>::Scratch scratch(ctx);
  Index heap_size = groups.stride != 0 ? capacity(groups.stride, experts) : capacity(tokens, experts);
  auto heaps = scratch.template vector<Index>(groups.count * experts * heap_size);
  auto taken = scratch.template matrix<std::uint8_t>(tokens, experts);
  detail::fill(ctx.space, taken, std::uint8_t(0));
  using Range = detail::Range<Space>;
  Kokkos::parallel_for("moe::ExpertChoice::take", Range(ctx.space, 0, tokens == 0 ? 0 : groups.count * experts),
                       detail::ExpertTakes<Real, Space>{*this, groups, keys, batch.mask, heaps, heap_size, taken});
  detail::fill(ctx.space, assignments.token_offsets, Index(0));
  Kokkos::parallel_scan("moe::ExpertChoice::count", Range(ctx.space, 0, tokens),
                        detail::CountTaken<Space>{taken, assignments.token_offsets});
  Kokkos::parallel_for("moe::ExpertChoice::list", Range(ctx.space, 0, tokens),
                       detail::ListTaken<Space>{taken, assignments.token_offsets, assignments.expert});
}

MOE_NAMESPACE_END
