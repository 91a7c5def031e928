#pragma once
/// @file
/// Runs of numbers from one type to another.

#include "moe/core/bfloat16.hpp"
#include "moe/core/compiler.hpp"
#include "moe/core/float16.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

#if defined(__F16C__) && !MOE_DEVICE_PASS
typedef short Halves __attribute__((vector_size(16), aligned(2), may_alias));
typedef float HalvesAsFloats __attribute__((vector_size(32), aligned(4), may_alias));

inline void convert_eight(const float16* from, float* to) {
  *reinterpret_cast<HalvesAsFloats*>(to) = __builtin_ia32_vcvtph2ps256(*reinterpret_cast<const Halves*>(from));
}
inline void convert_eight(const float* from, float16* to) {
  *reinterpret_cast<Halves*>(to) =
      __builtin_ia32_vcvtps2ph256(*reinterpret_cast<const HalvesAsFloats*>(from), 0);  // to nearest, ties to even
}
#endif

#if defined(__GNUC__)
/// As bfloat16's constructor, which compilers make no vectors of.
inline void convert_eight(const float* from, bfloat16* to) {
  typedef std::uint32_t Words __attribute__((vector_size(32), aligned(4), may_alias));
  typedef std::uint16_t Uppers __attribute__((vector_size(16), aligned(2), may_alias));
  const Words word = *reinterpret_cast<const Words*>(from);
  const Words rounded = word + 0x7fffu + (word >> 16 & 1u);
  const Words result = (word & 0x7fffffffu) > 0x7f800000u ? word | 0x400000u : rounded;
  *reinterpret_cast<Uppers*>(to) = __builtin_convertvector(result >> 16, Uppers);
}
#endif

/// to[i] = To(from[i]) for `count` numbers, by vectors on hosts: to bfloat16, and float16's by F16C, where
/// compiled for.
template <int count, class From, class To>
KOKKOS_FUNCTION void convert(const From* from, To* to) {
  int i = 0;
#if defined(__F16C__) && !MOE_DEVICE_PASS
  if constexpr ((std::is_same_v<From, float16> && std::is_same_v<To, float>) ||
                (std::is_same_v<From, float> && std::is_same_v<To, float16>)) {
    for (; i + 8 <= count; i += 8) convert_eight(from + i, to + i);
  }
#endif
#if defined(__GNUC__) && !MOE_DEVICE_PASS
  if constexpr (std::is_same_v<From, float> && std::is_same_v<To, bfloat16>) {
    for (; i + 8 <= count; i += 8) convert_eight(from + i, to + i);
  }
#endif
  MOE_INDEPENDENT
  for (; i < count; ++i) to[i] = To(from[i]);
}

}  // namespace detail

MOE_NAMESPACE_END
