#pragma once
/// @file
/// `Batch`: everything a stage may need beside the tokens.

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

/// The tokens and what is known about them. All optional but `x`; an unallocated view means "not given".
template <class T, class Space = Kokkos::DefaultExecutionSpace>
struct Batch {
  Matrix<const T, Space> x;                     ///< (T, H)
  Vector<const Index, Space> sequence_offsets;  ///< (S+1) first token of each sequence, then T; default: one sequence
  Vector<const std::uint8_t, Space> mask;       ///< (T) 0 = padding: id -1, output 0, in no count, no loss
  Vector<const std::int32_t, Space> token_ids;  ///< (T) vocabulary ids, for hash routing
  Vector<const std::int32_t, Space> task_ids;   ///< (S) for task routing
  Vector<const Index, Space> positions;         ///< (T) position in the sequence
  Matrix<const T, Space> router_input;          ///< (T, H') what the router looks at; default x
  Matrix<const T, Space> branch_input;          ///< (T, H) what branches look at; default x
  Matrix<const float, Space> draws;             ///< (T, D) noise given, not drawn: to replay another implementation's
  Vector<const float, Space> rewards;           ///< (T) read by backward, for policy gradients

  Index tokens() const { return Index(x.extent(0)); }
  Index hidden() const { return Index(x.extent(1)); }
  Matrix<const T, Space> for_router() const { return router_input.is_allocated() ? router_input : x; }
  Matrix<const T, Space> for_branches() const { return branch_input.is_allocated() ? branch_input : x; }
};

/// The tokens that a decision or a mean ranges over: the whole batch, each sequence, or groups of n tokens. One value
/// shared by expert choice, capacity and losses.
struct Scope {
  enum class Kind { batch, sequence, tokens } kind = Kind::batch;
  Index tokens_per_group = 0;

  static constexpr Scope batch() { return {Kind::batch, 0}; }
  static constexpr Scope sequence() { return {Kind::sequence, 0}; }
  static constexpr Scope groups_of(Index tokens) { return {Kind::tokens, tokens}; }
};

namespace detail {

template <class Space>
KOKKOS_FUNCTION bool is_padding(const Vector<const std::uint8_t, Space>& mask, Index t) {
  return mask.data() != nullptr && mask(t) == 0;
}

/// How many tokens of [begin, end) are not padding.
template <class Space>
KOKKOS_FUNCTION Index live_tokens(const Vector<const std::uint8_t, Space>& mask, Index begin, Index end) {
  if (mask.data() == nullptr) return end - begin;
  Index live = 0;
  for (Index t = begin; t < end; ++t) live += mask(t) != 0 ? 1 : 0;
  return live;
}

/// A Scope resolved for one batch: group g holds the tokens [begin(g), end(g)). Usable on the device.
template <class Space>
struct Groups {
  Vector<const Index, Space> offsets;  // where sequences are given
  Index tokens = 0, stride = 0, count = 1;

  KOKKOS_FUNCTION Index begin(Index g) const { return stride == 0 ? offsets(g) : g * stride; }
  KOKKOS_FUNCTION Index end(Index g) const { return stride == 0 ? offsets(g + 1) : (g + 1) * stride; }
  /// The group of a token, by bisection where groups are ragged.
  KOKKOS_FUNCTION Index of(Index token) const {
    if (stride != 0) return token / stride;
    Index low = 0, high = count;
    while (high - low > 1) {
      const Index middle = (low + high) / 2;
      (offsets(middle) <= token ? low : high) = middle;
    }
    return low;
  }
};

template <class T, class Space>
Groups<Space> groups(const Scope& scope, const Batch<T, Space>& batch) {
  const Index tokens = batch.tokens();
  if (scope.kind == Scope::Kind::tokens) {
    require<ConfigError>(scope.tokens_per_group > 0 && tokens % scope.tokens_per_group == 0, "moe::Scope: ", tokens,
                         " tokens do not divide into groups of ", scope.tokens_per_group,
                         ". Pad the batch (and mask the padding), or choose a group size that divides it.");
    return {{}, tokens, scope.tokens_per_group, tokens / scope.tokens_per_group};
  }
  if (scope.kind == Scope::Kind::sequence && batch.sequence_offsets.is_allocated())
    return {batch.sequence_offsets, tokens, 0, Index(batch.sequence_offsets.extent(0)) - 1};
  return {{}, tokens, tokens > 0 ? tokens : 1, 1};
}

/// The sequences of a batch that names a task for each. Throws ShapeError where it does not.
template <class T, class Space>
Groups<Space> task_sequences(const char* where, const Batch<T, Space>& batch) {
  const auto sequences = groups(Scope::sequence(), batch);
  require<ShapeError>(Index(batch.task_ids.extent(0)) == sequences.count, where, ": the batch has ",
                      batch.task_ids.extent(0), " task_ids for ", sequences.count,
                      " sequences. Set Batch::task_ids, one a sequence.");
  return sequences;
}

}  // namespace detail

MOE_NAMESPACE_END
