#pragma once
/// @file
/// An exponential that loops over rows vectorise with. One by one, libm's is the faster one.

#include <type_traits>

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// `condition ? yes : no` by masks: g++ would make a branch of that, for the sake of the constants, and no vectors.
KOKKOS_INLINE_FUNCTION float select(bool condition, float yes, float no) {
  const int mask = -int(condition);
  return Kokkos::bit_cast<float>((mask & Kokkos::bit_cast<int>(yes)) | (~mask & Kokkos::bit_cast<int>(no)));
}

/// e^x in f32 without a branch or a call, to 2 units in the last place; 0, infinity and NaN as std::exp gives them.
/// x = n log 2 + r; the polynomial is Cephes' (Moshier). 2^n is multiplied in two steps, so that results below the
/// normal range round once.
KOKKOS_INLINE_FUNCTION float vector_exp(float x) {
  constexpr float shift = 0x1.8p23f;  // added, it leaves the nearest integer in a sum's low bits
  x = select(x < -104.0f, -104.0f, x);
  x = select(x > 89.0f, 89.0f, x);
  const float sum = x * 1.44269504f + shift, n = sum - shift;
  const float r = x - n * 0.693359375f - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int power = Kokkos::bit_cast<int>(sum) - Kokkos::bit_cast<int>(shift), half = power >> 1;
  return p * Kokkos::bit_cast<float>((half + 127) << 23) * Kokkos::bit_cast<float>((power - half + 127) << 23);
}

/// e^x: for f32 on hosts by vector_exp, else Kokkos'.
template <class Real>
KOKKOS_FUNCTION Real exp(Real x) {
  if constexpr (std::is_same_v<Real, float>) {
    KOKKOS_IF_ON_HOST((return vector_exp(x);))
  }
  return Kokkos::exp(x);
}

}  // namespace detail

MOE_NAMESPACE_END
