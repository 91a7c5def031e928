#pragma once
/// @file
/// `DispatchPlan`: the one documented layout of rows sorted by expert.

#include "moe/core/assignments.hpp"

MOE_NAMESPACE_BEGIN

/// Where every live assignment goes: rows grouped by expert, within an expert in token order.
///
/// Row extents are a bound known on the host; the true rows of expert e are [expert_offsets(e), expert_offsets(e+1)),
/// known on the device. Duplicate ids of one token are rows of their own.
template <class Space = Kokkos::DefaultExecutionSpace>
struct DispatchPlan {
  Index tokens = 0, experts = 0;
  Index rows = 0;                       ///< R: extent of the row arrays
  Index rows_each = -1;                 ///< of every expert where they are as many (Pad), padding included; else -1
  Vector<Index, Space> expert_offsets;  ///< (E+1) exclusive
  Vector<Index, Space> row_token;       ///< (R) -1 = padding row
  Vector<Index, Space> row_assignment;  ///< (R) -1 = padding row
  Vector<Index, Space> assignment_row;  ///< (A) -1 = dropped or none
  Vector<Index, Space> token_offsets;   ///< (T+1) into token_rows: the live rows of each token, in choice order
  Vector<Index, Space> token_rows;      ///< (R)
  Vector<Index, Space> routed;          ///< (E) assignments before drops: what balancers count
  Vector<Index, Space> kept;            ///< (E) assignments after drops
};

MOE_NAMESPACE_END
