#pragma once
/// @file
/// `LowRankRows`: the rows that many low-rank updates act on, and the results' gradients.

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels {

/// Rows sorted by adapter. Rows are not moved for it: `number` says where they lie.
template <class T, class Space>
struct LowRankRows {
  using Real = RouterReal<T>;
  Vector<const Index, Space> offsets;  ///< (N+1) adapter n has rows [offsets(n), offsets(n + 1))
  Vector<const Index, Space> number;   ///< (R) where row r lies, in no two rows the same; negative: nowhere; empty: r
  Vector<const Real, Space> scale;     ///< (R) factor of row r's update; empty: 1
  Vector<const Index, Space> rank;     ///< (N) numbers behind an adapter's rank are zeros: hosts skip them; empty: r
  Index rows = 0;                      ///< R, or more: what the host knows

  KOKKOS_FUNCTION Index place(Index r) const { return number.data() == nullptr ? r : number(r); }
  KOKKOS_FUNCTION Real factor(Index r) const { return scale.data() == nullptr ? Real(1) : scale(r); }
};

/// What the backward pass of low-rank updates gives; each may be empty, but for the rows' when A's is wanted.
template <class T, class Space>
struct LowRankGradients {
  Tensor3<T, Space> a, b;              ///< (N, r, in) and (N, out, r): added to
  Matrix<T, Space> x;                  ///< (., in): see low_rank_backward
  Vector<RouterReal<T>, Space> scale;  ///< (R) of the rows' factors, overwritten
};

}  // namespace kernels

MOE_NAMESPACE_END
