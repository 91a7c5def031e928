#pragma once
/// @file
/// `float8_e4m3`: 8 bits with 4 of exponent and 3 of fraction (OCP 8-bit floating point, E4M3: no infinities, largest
/// number 448). Storage for numbers that share a scale; arithmetic happens in float.

#include <cstdint>

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

/// 2^-6 to 448 with 4 bits of precision, fewer down to 2^-9. From a float it rounds to nearest, ties to even; what is
/// too large becomes the largest, and NaN stays NaN.
struct float8_e4m3 {
  std::uint8_t bits = 0;
  static constexpr float largest = 448;

  float8_e4m3() = default;
  template <class Number>
  requires(std::is_arithmetic_v<Number>) KOKKOS_FUNCTION explicit float8_e4m3(Number value) {
    const auto word = Kokkos::bit_cast<std::uint32_t>(float(value));
    const std::uint32_t size = word & 0x7fffffffu, sign = word >> 24 & 0x80u;
    std::uint32_t result;
    if (size > 0x7f800000u) {
      result = 0x7f;
    } else if (size < 0x3c800000u) {  // below 2^-6: in [2^14, 2^15) a float's steps are those of subnormal numbers
      constexpr float base = 0x1p14f;
      result =
          Kokkos::bit_cast<std::uint32_t>(Kokkos::bit_cast<float>(size) + base) - Kokkos::bit_cast<std::uint32_t>(base);
    } else {
      result = (size + 0x7ffffu + (size >> 20 & 1u)) >> 20;
      result = result - (120u << 3) < 0x7eu ? result - (120u << 3) : 0x7eu;
    }
    bits = std::uint8_t(sign | result);
  }
  KOKKOS_FUNCTION operator float() const {
    const std::uint32_t size = bits & 0x7fu;
    const float magnitude = size == 0x7fu ? Kokkos::bit_cast<float>(0x7fc00000u)
                            : size < 8u   ? float(size) * 0x1p-9f
                                          : Kokkos::bit_cast<float>((size + (120u << 3)) << 20);
    return (bits & 0x80u) != 0 ? -magnitude : magnitude;
  }
};

MOE_NAMESPACE_END
