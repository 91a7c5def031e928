#pragma once
/// @file
/// Operands of a product, cut into the micro-kernels' tiles and panels as they are used: from rows along the sum or
/// across it, whatever their type.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "moe/core/bfloat16.hpp"
#include "moe/core/compiler.hpp"
#include "moe/kernels/cpu/panels.hpp"
#include "moe/kernels/product.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

/// `to[k][i] = from[i][k]`, 8 x 8 words; lines of both are given by pointers.
inline void transpose8(const float* const* from, Index offset, float* const* to, Index at) {
  typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
  Vector a[8], b[8];
  MOE_UNROLL(8)
  for (int i = 0; i < 8; ++i) a[i] = *reinterpret_cast<const Vector*>(from[i] + offset);
  MOE_UNROLL(4)
  for (int i = 0; i < 8; i += 2) {  // pairs of rows
    b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  MOE_UNROLL(2)
  for (int i = 0; i < 8; i += 4) {  // quadruples
    MOE_UNROLL(2)
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = __builtin_shufflevector(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      a[i + 2 * j + 1] = __builtin_shufflevector(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  MOE_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    *reinterpret_cast<Vector*>(to[i] + at) = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    *reinterpret_cast<Vector*>(to[i + 4] + at) = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

/// 16 x 16 words.
inline void transpose16(const float* const* from, float* const* to) {
  transpose8(from, 0, to, 0);
  transpose8(from, 8, to + 8, 0);
  transpose8(from + 8, 0, to, 8);
  transpose8(from + 8, 8, to + 8, 8);
}

/// Blocks of an operand in words: a word holds one number (Factor = float) or a pair along the sum (bfloat16).
template <class T, class Factor>
struct OperandBlocks {
  static constexpr Index in_word = 4 / Index(sizeof(Factor)), depth = 16 * in_word;  // of the sum
  static_assert(in_word == 1 || std::is_same_v<T, Factor>);

  /// A block of 16 rows (or columns) and `depth` of the sum: rows from `first`, `live` of them, the sum from `k` to
  /// `end`. by_row: line i of `to` is row i; else line l is the l-th word of all. Missing numbers are zeros.
  template <bool by_row>
  static void pack(const Operand<T>& from, Index first, Index live, Index k, Index end, float* const* to) {
    const bool along = from.sum_stride == 1;
    if (along == by_row) return load(from, along, first, live, k, end, to);
    alignas(64) float block[16][16];
    float* lines[16];
    for (int i = 0; i < 16; ++i) lines[i] = block[i];
    if (std::is_same_v<T, float> && along && live == 16 && k + depth <= end) {  // transposed where it lies
      const float* rows[16];
      for (int i = 0; i < 16; ++i)
        rows[i] = reinterpret_cast<const float*>(from.data + (first + i) * from.row_stride + k);
      return transpose16(rows, to);
    }
    load(from, along, first, live, k, end, lines);
    transpose16(lines, to);
  }

  /// A row along the sum, from `k` to `end`, to lines `step` bytes apart.
  static void copy_row(const Operand<T>& from, Index row, Index k, Index end, std::byte* to, Index step) {
    const T* data = from.data + row * from.row_stride;
    for (; k < end; k += depth, to += step) line(data + k, std::min(depth, end - k), reinterpret_cast<float*>(to));
  }

 private:
  /// Lines as memory has them.
  static void load(const Operand<T>& from, bool along, Index first, Index live, Index k, Index end, float* const* to) {
    if (along) {
      const Index width = std::min(depth, end - k);
      for (Index i = 0; i < 16; ++i)
        line(i < live ? from.data + (first + i) * from.row_stride + k : nullptr, width, to[i]);
    } else if constexpr (in_word == 1) {
      const Index lines = std::min(depth, end - k);
      for (Index l = 0; l < 16; ++l)
        line(l < lines ? from.data + (k + l) * from.sum_stride + first : nullptr, live, to[l]);
    } else {
      for (Index l = 0; l < 16; ++l, k += 2) {
        const T* upper = from.data + k * from.sum_stride + first;
        pairs(k < end ? upper : nullptr, k + 1 < end ? upper + from.sum_stride : nullptr, live, to[l]);
      }
    }
  }

  static void line(const T* from, Index live, float* to) { copy_line(from, live, reinterpret_cast<Factor*>(to)); }
  /// Two numbers of the sum, the first in the lower half.
  static void pairs(const T* first, const T* second, Index live, float* to) {
    if (live == 16 && second != nullptr) {
      typedef std::uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));
      const Halves a = *reinterpret_cast<const Halves*>(first), b = *reinterpret_cast<const Halves*>(second);
      auto* out = reinterpret_cast<Halves*>(to);
      out[0] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      out[1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
      return;
    }
    std::uint16_t halves[16][2] = {};
    for (Index i = 0; i < live; ++i) {
      if (first != nullptr) std::memcpy(&halves[i][0], first + i, 2);
      if (second != nullptr) std::memcpy(&halves[i][1], second + i, 2);
    }
    std::memcpy(to, halves, 64);
  }
};

}  // namespace kernels::cpu

MOE_NAMESPACE_END
