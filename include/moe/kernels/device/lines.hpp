#pragma once
/// @file
/// Lines of 16 bytes from an operand in global memory to a tile in a team's scratch memory.

#include <cstdint>

#include "moe/core/blocks.hpp"
#include "moe/kernels/product.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::device {

/// Bytes that one instruction moves.
inline constexpr int line_bytes = 16;

using moe::detail::Block;

/// Copies a line. On NVIDIA's devices since sm_80 the copy goes on beside arithmetic.
KOKKOS_INLINE_FUNCTION void copy_line(void* to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned address = unsigned(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(address), "l"(from) : "memory");
#else
  *static_cast<Block*>(to) = *static_cast<const Block*>(from);
#endif
}

/// Ends a group of copies.
KOKKOS_INLINE_FUNCTION void end_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

/// Waits until all but the last `pending` groups of this thread's copies are there.
template <int pending>
KOKKOS_INLINE_FUNCTION void await_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
#endif
}

/// A tile of `rows` rows and `depth` of the sum. Where the operand lies along the sum, [row][depth], else [depth][row];
/// a line behind each keeps neighbours in different banks of the memory.
template <class T, int rows, int depth, bool along_>
struct TileLayout {
  static constexpr bool along = along_;
  static constexpr int in_line = line_bytes / int(sizeof(T));
  static constexpr int inner = along ? depth : rows, outer = along ? rows : depth;
  static constexpr int pitch = inner + in_line, size = outer * pitch;
  static_assert(inner % in_line == 0);
  KOKKOS_FUNCTION static constexpr int at(int row, int k) { return along ? row * pitch + k : k * pitch + row; }
};

/// Can an operand be read by whole lines?
template <class T>
bool in_lines(const Operand<T>& operand) {
  constexpr Index in_line = line_bytes / sizeof(T);
  const Index outer = operand.sum_stride == 1 ? operand.row_stride : operand.sum_stride;
  return reinterpret_cast<std::uintptr_t>(operand.data) % line_bytes == 0 && outer % in_line == 0 &&
         operand.expert_stride % in_line == 0;
}

/// Fills a tile: rows from `row`, the sum from `k`; zeros where either is past its end. Thread `thread` of `threads`.
template <class Layout, int threads, bool along, class T>
KOKKOS_FUNCTION void load_tile(const Operand<T>& from, Index row, Index end_row, Index k, Index end_k, bool lines,
                               T* KOKKOS_RESTRICT to, int thread) {
  constexpr int in_line = Layout::in_line, across = Layout::inner / in_line;
  const Index first = along ? row : k, end = along ? end_row : end_k;        // of what lies far apart
  const Index inner = along ? k : row, end_inner = along ? end_k : end_row;  // of what lies side by side
  const Index stride = along ? from.row_stride : from.sum_stride;
  for (int line = thread; line < Layout::outer * across; line += threads) {
    const int o = line / across, i = line % across * in_line;
    const Index number = first + o < end ? from.stored(first + o) : -1, live = end_inner - inner - i;
    const T* const source = from.data + number * stride + inner + i;
    T* const at = to + o * Layout::pitch + i;
    if (number < 0 || live <= 0) {
      *reinterpret_cast<Block*>(at) = {};
    } else if (lines && live >= in_line) {
      copy_line(at, source);
    } else {
      for (int l = 0; l < in_line; ++l) at[l] = l < live ? source[l] : T(0.0f);
    }
  }
}

}  // namespace kernels::device

MOE_NAMESPACE_END
