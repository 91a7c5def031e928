#pragma once
/// @file
/// Runs of numbers from one type to another.

#include "moe/core/compiler.hpp"
#include "moe/core/float16.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

#if defined(__F16C__) && !defined(__CUDA_ARCH__)
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

/// to[i] = To(from[i]) for `count` numbers, by vectors on hosts: float16's by F16C, where compiled for.
template <int count, class From, class To>
KOKKOS_FUNCTION void convert(const From* from, To* to) {
  int i = 0;
#if defined(__F16C__) && !defined(__CUDA_ARCH__)
  if constexpr ((std::is_same_v<From, float16> && std::is_same_v<To, float>) ||
                (std::is_same_v<From, float> && std::is_same_v<To, float16>)) {
    for (; i + 8 <= count; i += 8) convert_eight(from + i, to + i);
  }
#endif
  MOE_INDEPENDENT
  for (; i < count; ++i) to[i] = To(from[i]);
}

}  // namespace detail

MOE_NAMESPACE_END
