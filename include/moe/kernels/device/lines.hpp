#pragma once
/// @file
/// Lines of 16 bytes from an operand in global memory to a tile in a team's scratch memory.

#include <cstdint>

#include "moe/core/blocks.hpp"
#include "moe/core/compiler.hpp"
#include "moe/kernels/product.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::device {

/// Bytes that one instruction moves.
inline constexpr int line_bytes = 16;

using moe::detail::Block;

/// Copies a line, or writes zeros. On NVIDIA's devices since sm_80 the copy goes on beside arithmetic.
KOKKOS_INLINE_FUNCTION void copy_line(void* to, const void* from, bool zeros) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned address = unsigned(__cvta_generic_to_shared(to));
  asm volatile(
      "{.reg .pred zeros;\nsetp.ne.u32 zeros, %2, 0;\ncp.async.cg.shared.global [%0], [%1], 16, zeros;}\n" ::"r"(
          address),
      "l"(from), "r"(unsigned(zeros))
      : "memory");
#else
  *static_cast<Block*>(to) = zeros ? Block{} : *static_cast<const Block*>(from);
#endif
}

/// A line in registers.
template <class T>
using Line = moe::detail::Pack<T>;

template <class T>
KOKKOS_INLINE_FUNCTION Line<T> read_line(const T* from) {
  return moe::detail::load_block(from, 0);
}
template <class T>
KOKKOS_INLINE_FUNCTION void write_line(T* to, const Line<T>& line) {
#if defined(__CUDA_ARCH__)
  // Compilers would write four words where values come from conversions.
  const auto words = Kokkos::bit_cast<uint4>(line);
  asm volatile("st.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"l"(to), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
#else
  moe::detail::store_block(to, 0, line);
#endif
}

/// Brings a line near, to be read later.
KOKKOS_INLINE_FUNCTION void prefetch_line([[maybe_unused]] const void* from) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(__cvta_generic_to_global(from)));
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

/// Lets matrix units that read scratch memory by themselves see this thread's copies; a barrier follows.
KOKKOS_INLINE_FUNCTION void publish_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
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
  /// Number `i` of what lies side by side, a line's first, in `o` of the others.
  KOKKOS_FUNCTION static constexpr int line(int o, int i) { return o * pitch + i; }
};

/// The same as NVIDIA's warpgroups read it: 128 bytes side by side, then the next of the others, then the next 128
/// bytes; the 8 lines of 128 bytes are permuted, by another permutation in each of 8 neighbours.
template <class T, int rows, int depth, bool along_>
struct SwizzledLayout {
  static constexpr bool along = along_;
  static constexpr int in_line = line_bytes / int(sizeof(T)), together = 8 * in_line;
  static constexpr int inner = along ? depth : rows, outer = along ? rows : depth, size = inner * outer;
  static_assert(inner % together == 0 && outer % 8 == 0);
  KOKKOS_FUNCTION static constexpr int line(int o, int i) {
    return i / together * (outer * together) + o * together + (i % together / in_line ^ o % 8) * in_line;
  }
  KOKKOS_FUNCTION static constexpr int at(int row, int k) {
    return line(along ? row : k, (along ? k : row) / in_line * in_line) + (along ? k : row) % in_line;
  }
};

/// Can an operand be read by whole lines?
template <class T>
bool in_lines(const Operand<T>& operand) {
  const Index outer = operand.sum_stride == 1 ? operand.row_stride : operand.sum_stride;
  return moe::detail::in_blocks(operand.data, outer) && operand.expert_stride % Line<T>::size == 0;
}

/// Fills tiles that begin at `row`, by lines of which each of `threads` threads has its own: zeros where rows or the
/// sum are past their ends. Where rows lie along the sum, they are looked up once for all of it.
template <class Layout, int threads, class T>
class TileLines {
  static constexpr bool along = Layout::along;
  static constexpr int in_line = Layout::in_line, across = Layout::inner / in_line, lines = Layout::outer * across;
  static constexpr int count = (lines + threads - 1) / threads;
  static constexpr bool in_step = threads % across == 0;  // a thread's lines are one below the other

 public:
  /// whole: the operand can be read by whole lines.
  KOKKOS_FUNCTION TileLines(const Operand<T>& from, Index row, Index end_row, bool whole, int thread)
      : from_(from), row_(row), end_row_(end_row), whole_(whole), thread_(thread) {
    if constexpr (along) {
      MOE_UNROLL_ON_DEVICE
      for (int l = 0; l < count; ++l) source_[l] = source(l, 0, 1);
    }
  }

  /// The tile of the sum from `k` on, of whose numbers those from end_k on are zeros, `further` on in memory.
  KOKKOS_FUNCTION void load(Index k, Index end_k, T* KOKKOS_RESTRICT to, Index further = 0) const {
    const Index left = along ? end_k - k : end_row_ - row_;
    const int live = left < Layout::inner ? int(left) : Layout::inner;  // of the inner numbers
    if (!whole_ || live % in_line != 0) return load_numbers(k, end_k, to, further, live);
    const T* from[count];  // all found before the first is copied: finding may read numbers
    MOE_UNROLL_ON_DEVICE
    for (int l = 0; l < count; ++l) {
      if constexpr (along) {
        from[l] = source_[l] == nullptr ? nullptr : source_[l] + k;
      } else {
        from[l] = source(l, k, end_k);
      }
    }
    MOE_UNROLL_ON_DEVICE
    for (int l = 0; l < count; ++l) {
      if (lines % threads != 0 && thread_ + l * threads >= lines) return;
      const bool zeros = from[l] == nullptr || inner(l) >= live;
      copy_line(to + Layout::line(outer(l), inner(l)), zeros ? from_.data : from[l] + further, zeros);
    }
  }

 private:
  KOKKOS_FUNCTION int outer(int l) const {
    return in_step ? thread_ / across + l * (threads / across) : (thread_ + l * threads) / across;
  }
  KOKKOS_FUNCTION int inner(int l) const { return (in_step ? thread_ : thread_ + l * threads) % across * in_line; }
  /// Where line l begins, or null past the ends.
  KOKKOS_FUNCTION const T* source(int l, Index k, Index end_k) const {
    const Index at = (along ? row_ : k) + outer(l), number = at < (along ? end_row_ : end_k) ? from_.stored(at) : -1;
    const Index stride = along ? from_.row_stride : from_.sum_stride;
    return number < 0 ? nullptr : from_.data + number * stride + (along ? k : row_) + inner(l);
  }

  /// One by one. Not unrolled: it is seldom run.
  KOKKOS_FUNCTION void load_numbers(Index k, Index end_k, T* KOKKOS_RESTRICT to, Index further, int live) const {
    MOE_UNROLL_BY_ON_DEVICE(1)
    for (int l = 0; l < count; ++l) {
      if (thread_ + l * threads >= lines) return;
      const T* const from = source(l, k, end_k);
      T* const at = to + Layout::line(outer(l), inner(l));
      MOE_UNROLL_BY_ON_DEVICE(1)
      for (int n = 0; n < in_line; ++n) at[n] = from != nullptr && inner(l) + n < live ? from[further + n] : T(0.0f);
    }
  }

  const Operand<T> from_;
  Index row_, end_row_;
  bool whole_;
  int thread_;
  const T* source_[along ? count : 1];
};

}  // namespace kernels::device

MOE_NAMESPACE_END
