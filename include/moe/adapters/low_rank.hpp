#pragma once
/// @file
/// `LowRank`: many low-rank updates of one linear map (Hu et al. 2021, "LoRA").

#include "moe/core/context.hpp"
#include "moe/core/parameter.hpp"

MOE_NAMESPACE_BEGIN

/// Sizes of low-rank updates of a linear map.
struct LowRankShape {
  Index adapters = 0;  ///< N
  Index in = 0;        ///< width of what the map reads
  Index out = 0;       ///< width of what it gives
  Index rank = 0;      ///< r
};

/// Update n adds scaling * B_n (A_n x) to the map's output; scaling (alpha / r) belongs to whoever holds this.
template <class T, class Space = Kokkos::DefaultExecutionSpace>
struct LowRank {
  Tensor3<T, Space> a;  ///< (N, r, in), or (1, r, in) where all share it
  Tensor3<T, Space> b;  ///< (N, out, r); starts at zero, so that an update starts as none

  template <class F, class... Same>
  static void visit(F&& f, Same&... same) {
    f("lora_A", same.a...);
    f("lora_B", same.b...);
  }

  KOKKOS_FUNCTION Index adapters() const { return Index(b.extent(0)); }
  KOKKOS_FUNCTION Index in() const { return Index(a.extent(2)); }
  KOKKOS_FUNCTION Index out() const { return Index(b.extent(1)); }
  KOKKOS_FUNCTION Index rank() const { return Index(b.extent(2)); }
};

MOE_NAMESPACE_END
