#pragma once
/// @file
/// Rows of numbers as int8 and a scale: q = x / step to the nearest whole, step = the row's largest magnitude / 127, so
/// that q step differs from x by at most step / 2. Symmetric, so that zeros stay zeros and products need no terms for
/// an offset.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

namespace kernels::cpu {

/// Are weights of T whole numbers with scales?
template <class T>
inline constexpr bool is_quantised = std::is_same_v<T, std::int8_t>;
/// What x consists of where weights are T.
template <class T>
using Token = std::conditional_t<is_quantised<T>, float, T>;

inline constexpr Index quantised_limit = 127;
/// So many products of two such numbers fit int32 in any case.
inline constexpr Index quantised_depth = std::numeric_limits<std::int32_t>::max() / (quantised_limit * quantised_limit);

struct RowScale {
  float step = 0;     ///< 0: the row is zeros, or below 2^-119 throughout; NaN: it holds NaN or an infinity
  float inverse = 0;  ///< of step; 0 in these cases

  RowScale() = default;
  template <class Number>
  RowScale(const Number* row, Index size) {
    const float largest = Kokkos::bit_cast<float>(largest_magnitude(row, size));
    constexpr float limit = quantised_limit;
    if (!(largest <= std::numeric_limits<float>::max())) {
      step = std::numeric_limits<float>::quiet_NaN();
    } else if (largest >= 0x1p-119f) {  // below, the inverse might be infinite
      step = largest / limit;
      inverse = limit / largest;
    }
  }

  /// The whole number for x, ties to even: in a float beyond 2^23 the last bit is 1.
  std::int32_t quantise(float x) const {
    return Kokkos::bit_cast<std::int32_t>(x * inverse + 0x1.8p23f) - Kokkos::bit_cast<std::int32_t>(0x1.8p23f);
  }

 private:
  static std::int32_t magnitude(float x) { return Kokkos::bit_cast<std::int32_t>(x) & 0x7fffffff; }

  /// The bits of the largest |x|. Compared as integers, infinities and then NaN are the largest of all.
  template <class Number>
  static std::int32_t largest_magnitude(const Number* row, Index size) {
    std::int32_t result = 0;
    Index i = 0;
    if constexpr (std::is_same_v<Number, float>) {
      typedef std::int32_t Bits __attribute__((vector_size(32), aligned(4), may_alias));
      Bits most[4] = {};
      for (; i + 32 <= size; i += 32) {
        for (Index v = 0; v < 4; ++v) {
          const Bits bits = *reinterpret_cast<const Bits*>(row + i + 8 * v) & 0x7fffffff;
          most[v] = bits > most[v] ? bits : most[v];
        }
      }
      for (Index l = 0; l < 32; ++l) result = std::max(result, most[l / 8][l % 8]);
    }
    for (; i < size; ++i) result = std::max(result, magnitude(float(row[i])));
    return result;
  }
};

/// Numbers of a row in a tile: with int8 there is one more line, for what the kernels add to the row's sums.
template <class Factor>
constexpr Index tile_depth(Index depth) {
  return depth + (sizeof(Factor) == 1 ? 64 : 0);
}

/// Writes a row into a tile of int16 or int8: lines of 64 bytes, `stride` numbers apart, zeros behind the row's `size`.
/// Returns step.
template <class Factor>
float quantise_row(const float* __restrict from, Index size, Index depth, Factor* __restrict to, Index stride) {
  constexpr Index in_line = 64 / sizeof(Factor);
  const RowScale scale(from, size);
  if (scale.inverse == 0) size = 0;
  std::uint32_t sum = 0;
  for (Index k = 0; k < depth; k += in_line, to += stride) {
    const Index live = std::clamp<Index>(size - k, 0, in_line);
    std::int32_t wholes[in_line];
    if (live == in_line) {
      for (Index l = 0; l < in_line; ++l) wholes[l] = scale.quantise(from[k + l]);
    } else {
      for (Index l = 0; l < in_line; ++l) wholes[l] = l < live ? scale.quantise(from[k + l]) : 0;
    }
    for (Index l = 0; l < in_line; ++l) to[l] = Factor(wholes[l]);
    if constexpr (sizeof(Factor) == 1) {
      for (Index l = 0; l < in_line; ++l) sum += std::uint32_t(wholes[l]);
    }
  }
  if constexpr (sizeof(Factor) == 1) {
    sum *= std::uint32_t(-128);
    std::memcpy(to, &sum, sizeof(sum));
  }
  return scale.step;
}

}  // namespace kernels::cpu

MOE_NAMESPACE_END
