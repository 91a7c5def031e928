#pragma once
/// @file
/// `Assignments`: what a router decides.

#include "moe/core/batch.hpp"

MOE_NAMESPACE_BEGIN

/// The choices of all tokens: token-major, in the order the selection ranks them. A fixed number K a token is the fast
/// path of ragged lists.
template <class Real, class Space = Kokkos::DefaultExecutionSpace>
struct Assignments {
  Index tokens = 0;
  Index bound = 0;                     ///< A: extent of `expert` and `weight`, known on the host
  Index uniform_k = 0;                 ///< K, or 0 where lists are ragged
  Vector<Index, Space> token_offsets;  ///< (T+1), used where ragged
  Vector<ExpertId, Space> expert;      ///< (A) -1 = none
  Vector<Real, Space> weight;          ///< (A)
  Vector<std::uint8_t, Space> live;    ///< (A) or empty: all; 0 = skipped before dispatch: no row, no place, no `kept`

  /// The assignments of token t are [begin(t), end(t)).
  KOKKOS_FUNCTION Index begin(Index t) const { return uniform_k != 0 ? t * uniform_k : token_offsets(t); }
  KOKKOS_FUNCTION Index end(Index t) const { return uniform_k != 0 ? (t + 1) * uniform_k : token_offsets(t + 1); }
  /// Has no policy skipped assignment a? (Skipped ones still count as routed.)
  KOKKOS_FUNCTION bool is_live(Index a) const { return live.data() == nullptr || live(a) != 0; }
};

MOE_NAMESPACE_END
