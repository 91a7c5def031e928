#pragma once
/// @file
/// `bfloat16`: 16 bits of storage with the range of float. All arithmetic happens in float.

#include <cstdint>

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

/// The upper half of a float. From a float it rounds to nearest, ties to even; NaN stays NaN.
///
/// A layer with `Precision<bfloat16, float>` stores parameters and activations in it. (Kokkos' bhalf_t is a plain float
/// on hosts.)
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;
  template <class Number>
  requires(std::is_arithmetic_v<Number>) KOKKOS_FUNCTION explicit bfloat16(Number value) {
    const auto word = Kokkos::bit_cast<std::uint32_t>(float(value));
    const std::uint32_t rounded = word + 0x7fffu + (word >> 16 & 1u);
    bits = std::uint16_t(((word & 0x7fffffffu) > 0x7f800000u ? word | 0x400000u : rounded) >> 16);
  }
  KOKKOS_FUNCTION operator float() const { return Kokkos::bit_cast<float>(std::uint32_t(bits) << 16); }
  KOKKOS_FUNCTION bfloat16& operator+=(bfloat16 other) { return *this = bfloat16(float(*this) + float(other)); }
};

MOE_NAMESPACE_END
