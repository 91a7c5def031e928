#pragma once
/// @file
/// `AttentionPlan`: which keys each query sees; `KeyValueCache`: the keys and values of the tokens before.

#include "moe/core/batch.hpp"
#include "moe/core/context.hpp"
MOE_NAMESPACE_BEGIN

/// Keys and values of the tokens that each sequence has put through a layer, in their order.
template <class T, class Space = Kokkos::DefaultExecutionSpace>
struct KeyValueCache {
  Index sequences = 0, capacity = 0;  ///< S, and the most tokens of one sequence
  Vector<Index, Space> length;        ///< (S) tokens of each sequence so far; 0 forgets them
  Matrix<T, Space> key, value;        ///< (S * capacity, key_heads * width); sequence s begins at row s * capacity

  KeyValueCache() = default;
  /// Throws ConfigError for negative sizes.
  KeyValueCache(Index sequences_, Index capacity_, Index columns)
      : sequences(checked(sequences_, capacity_)),
        capacity(capacity_),
        length("moe::KeyValueCache::length", sequences_),
        key(detail::allocate_zeros<Matrix<T, Space>>("moe::KeyValueCache::key", sequences_ * capacity_, columns)),
        value(detail::allocate_zeros<Matrix<T, Space>>("moe::KeyValueCache::value", sequences_ * capacity_, columns)) {}
  KeyValueCache(const KeyValueCache&) = delete;  // copies would share their arrays
  KeyValueCache& operator=(const KeyValueCache&) = delete;
  KeyValueCache(KeyValueCache&&) = default;
  KeyValueCache& operator=(KeyValueCache&&) = default;

 private:
  static Index checked(Index sequences, Index capacity) {
    detail::require<ConfigError>(sequences > 0 && capacity >= 0, "moe::KeyValueCache: ", sequences, " sequences of ",
                                 capacity, " tokens; there must be one sequence at least, and no negative capacity.");
    return sequences;
  }
};

/// Who attends to whom: query t sees the first visible(t) keys of its sequence, less those that key_mask takes out.
/// Queries of a sequence follow each other.
template <class Space = Kokkos::DefaultExecutionSpace>
struct AttentionPlan {
  Index sequences = 0, queries = 0, keys = 0;     ///< S; extents of the arrays of queries and of keys
  Vector<const Index, Space> query_offsets;       ///< (S+1)
  Vector<const Index, Space> key_begin, key_end;  ///< (S) rows of the keys of each sequence
  Vector<Index, Space> sequence;                  ///< (queries) -1 = in none
  Vector<Index, Space> visible;                   ///< (queries) 0 = sees nothing: its output is 0
  Vector<const std::uint8_t, Space> key_mask;     ///< (keys) 0 = seen by no one; or empty
  Vector<Index, Space> slot;                      ///< (queries) row in the cache, where there is one; -1 = none

  // Storage of query_offsets, key_begin and key_end where they are not the batch's own.
  Vector<Index, Space> offsets, begins, ends;
};

namespace detail {

template <class Space>
struct OneSequence {
  Vector<Index, Space> offsets;
  Index tokens;
  KOKKOS_FUNCTION void operator()(Index i) const { offsets(i) = i * tokens; }
};

template <class Space>
struct CausalQuery {
  Groups<Space> sequences;
  Vector<const std::uint8_t, Space> mask;
  Vector<Index, Space> sequence, visible;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index s = sequences.count == 0 ? 0 : sequences.of(t);
    const bool inside = sequences.count > 0 && t >= sequences.begin(s) && t < sequences.end(s);
    sequence(t) = inside ? s : -1;
    visible(t) = inside && !is_padding<Space>(mask, t) ? t - sequences.begin(s) + 1 : 0;
  }
};

/// Gives a sequence's new tokens their rows in the cache: one behind the other, padding none.
template <class Space>
struct AppendSequence {
  Vector<const Index, Space> offsets;
  Vector<const std::uint8_t, Space> mask;
  Index capacity;
  Vector<Index, Space> length, sequence, visible, slot, begins, ends;
  Kokkos::View<int, typename Space::memory_space> flag;
  KOKKOS_FUNCTION void operator()(Index s) const {
    Index count = length(s);
    for (Index t = offsets(s); t < offsets(s + 1); ++t) {
      const bool live = !is_padding<Space>(mask, t) && count < capacity;
      if (!is_padding<Space>(mask, t) && !live) Kokkos::atomic_or(&flag(), int(fault_cache));
      sequence(t) = s;
      slot(t) = live ? s * capacity + count++ : -1;
      visible(t) = live ? count : 0;
    }
    length(s) = count;
    begins(s) = s * capacity;
    ends(s) = s * capacity + count;
  }
};

template <class T, class Space>
Vector<const Index, Space> sequence_offsets(Context<Space>& ctx, const Batch<T, Space>& batch,
                                            AttentionPlan<Space>& plan) {
  if (batch.sequence_offsets.is_allocated()) {
    const auto& offsets = batch.sequence_offsets;
    if constexpr (!device_path<Space>) {
      Index last = 0;
      for (std::size_t s = 0; s < offsets.extent(0); ++s) {
        require<ShapeError>(last <= offsets(s) && offsets(s) <= batch.tokens(), "moe: sequence_offsets(", s, ") is ",
                            offsets(s), " behind ", last, ", in a batch of ", batch.tokens(),
                            " tokens. Offsets ascend, and the last is the number of tokens.");
        last = offsets(s);
      }
    }
    return offsets;
  }
  shape(plan.offsets, "moe::offsets", 2);
  each(ctx.space, "moe::offsets", 2, OneSequence<Space>{plan.offsets, batch.tokens()});
  return plan.offsets;
}

}  // namespace detail

/// Causal self-attention within each sequence of the batch; padding neither sees nor is seen.
template <class T, class Space>
void plan_causal_attention(Context<Space>& ctx, const Batch<T, Space>& batch, AttentionPlan<Space>& plan) {
  const Index tokens = batch.tokens();
  const auto offsets = detail::sequence_offsets(ctx, batch, plan);
  const Index sequences = Index(offsets.extent(0)) - 1;
  plan.sequences = sequences;
  plan.queries = plan.keys = tokens;
  plan.query_offsets = offsets;
  plan.key_begin = Vector<const Index, Space>(offsets.data(), sequences);
  plan.key_end = Vector<const Index, Space>(offsets.data() + 1, sequences);
  plan.key_mask = batch.mask;
  plan.slot = {};
  detail::shape(plan.sequence, "moe::sequence", tokens);
  detail::shape(plan.visible, "moe::visible", tokens);
  const detail::Groups<Space> groups{offsets, tokens, 0, sequences};
  detail::each(ctx.space, "moe::plan_causal_attention", tokens,
               detail::CausalQuery<Space>{groups, batch.mask, plan.sequence, plan.visible});
}

/// The same behind the tokens that the cache holds: gives the batch's tokens places in it, and counts them there.
/// Tokens beyond a sequence's capacity get none, see nothing, and raise the context's flag.
template <class T, class Space>
void plan_causal_attention(Context<Space>& ctx, const Batch<T, Space>& batch, const KeyValueCache<T, Space>& cache,
                           AttentionPlan<Space>& plan) {
  const Index tokens = batch.tokens();
  const auto offsets = detail::sequence_offsets(ctx, batch, plan);
  const Index sequences = Index(offsets.extent(0)) - 1;
  detail::require<ShapeError>(sequences == cache.sequences, "moe::KeyValueCache: a batch of ", sequences,
                              " sequences for a cache of ", cache.sequences,
                              ". Give Batch::sequence_offsets of all the cache's sequences; a sequence may be empty.");
  plan.sequences = sequences;
  plan.queries = tokens;
  plan.keys = cache.key.extent(0);
  plan.query_offsets = offsets;
  for (auto* view : {&plan.sequence, &plan.visible, &plan.slot}) detail::shape(*view, "moe::plan", tokens);
  detail::shape(plan.begins, "moe::begins", sequences);
  detail::shape(plan.ends, "moe::ends", sequences);
  plan.key_begin = plan.begins;
  plan.key_end = plan.ends;
  plan.key_mask = {};
  detail::fill(ctx.space, plan.sequence, Index(-1));
  detail::fill(ctx.space, plan.visible, Index(0));
  detail::fill(ctx.space, plan.slot, Index(-1));
  detail::each(ctx.space, "moe::plan_causal_attention", sequences,
               detail::AppendSequence<Space>{offsets, batch.mask, cache.capacity, cache.length, plan.sequence,
                                             plan.visible, plan.slot, plan.begins, plan.ends, ctx.flag()},
               Index(1));
}

MOE_NAMESPACE_END
