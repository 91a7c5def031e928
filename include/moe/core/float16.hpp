#pragma once
/// @file
/// `float16`: IEEE 754's 16-bit format as storage. All arithmetic happens in float.

#include <cstdint>

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// The float of a float16's bits. Masks instead of branches, so that loops vectorise; no denormal float takes part.
KOKKOS_INLINE_FUNCTION float widen_half(std::uint16_t half) {
  const std::uint32_t size = std::uint32_t(half & 0x7fffu) << 13;
  const std::uint32_t special = -std::uint32_t(size >= 0x0f800000u), small = -std::uint32_t(size < 0x00800000u);
  const std::uint32_t normal = size + 0x38000000u + (special & 0x38000000u);
  const auto subnormal = Kokkos::bit_cast<std::uint32_t>(float(std::int32_t(half & 0x3ffu)) * 0x1p-24f);
  return Kokkos::bit_cast<float>((small & subnormal) | (~small & normal) | std::uint32_t(half & 0x8000u) << 16);
}

/// The float16 nearest to a float, ties to even; what passes 65504 by half a step is infinity, and NaN stays NaN: the
/// bits that x86's F16C gives. (Its instructions for one number are no faster and keep loops from vectorising.)
KOKKOS_INLINE_FUNCTION std::uint16_t narrow_half(float value) {
  const auto word = Kokkos::bit_cast<std::uint32_t>(value);
  const std::uint32_t size = word & 0x7fffffffu;
  // In [0.5, 1) a float's steps are those of subnormal float16: adding 0.5 rounds to them.
  const std::uint32_t subnormal =
      Kokkos::bit_cast<std::uint32_t>(Kokkos::bit_cast<float>(size) + 0.5f) - Kokkos::bit_cast<std::uint32_t>(0.5f);
  const std::uint32_t normal = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
  const std::uint32_t nan = -std::uint32_t(size > 0x7f800000u);
  const std::uint32_t special = 0x7c00u | (nan & (0x200u | (size >> 13 & 0x1ffu)));
  const std::uint32_t small = -std::uint32_t(size < 0x38800000u), large = -std::uint32_t(size >= 0x47800000u);
  return std::uint16_t((small & subnormal) | (large & special) | (~small & ~large & normal) | (word >> 16 & 0x8000u));
}

}  // namespace detail

/// 11 bits of precision from 2^-14 to 65504, fewer down to 2^-24. From a float it rounds to nearest, ties to even.
///
/// A layer with `Precision<float16, float>` stores parameters and activations in it; gradients then need a `LossScale`.
struct float16 {
  std::uint16_t bits = 0;

  float16() = default;
  template <class Number>
  requires(std::is_arithmetic_v<Number>) KOKKOS_FUNCTION explicit float16(Number value)
      : bits(detail::narrow_half(float(value))) {}
  KOKKOS_FUNCTION operator float() const { return detail::widen_half(bits); }
  KOKKOS_FUNCTION float16& operator+=(float16 other) { return *this = float16(float(*this) + float(other)); }
};

MOE_NAMESPACE_END
