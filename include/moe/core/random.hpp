#pragma once
/// @file
/// Counter-based random numbers: a draw is a pure function of (seed, step, layer, purpose, token, index), so it does
/// not depend on threads, on the batch around a token, or on whether a forward pass is replayed.

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

/// What a layer's weights and noise are drawn from.
struct Seed {
  std::uint64_t value = 0;
};

/// The uses of random numbers, so that no two share a stream.
enum class Purpose : std::uint32_t {
  initialise,
  jitter,
  noise,
  shuffle,
  data,
  sample,
  user,
  skip,
  dropout,
  input,
  gumbel,
  adapter
};

/// The key of one stream of draws.
struct RandomKey {
  std::uint64_t seed = 0;
  std::uint64_t step = 0;
  std::uint32_t layer = 0;
  Purpose purpose = Purpose::user;
};

/// 32 random bits by Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
KOKKOS_INLINE_FUNCTION std::uint32_t random_bits(const RandomKey& key, std::uint64_t token, std::uint32_t index) {
  std::uint32_t counter[4] = {std::uint32_t(token), std::uint32_t(token >> 32), index,
                              std::uint32_t(key.purpose) ^ (key.layer << 8)};
  const std::uint64_t mixed = key.seed ^ (key.step * 0x9E3779B97F4A7C15ull);
  std::uint32_t k0 = std::uint32_t(mixed), k1 = std::uint32_t(mixed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t(0xD2511F53u) * counter[0];
    const std::uint64_t b = std::uint64_t(0xCD9E8D57u) * counter[2];
    const std::uint32_t next[4] = {std::uint32_t(b >> 32) ^ counter[1] ^ k0, std::uint32_t(b),
                                   std::uint32_t(a >> 32) ^ counter[3] ^ k1, std::uint32_t(a)};
    for (int i = 0; i < 4; ++i) counter[i] = next[i];
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter[0];
}

/// Uniform in [0, 1).
template <class Real>
KOKKOS_FUNCTION Real random_uniform(const RandomKey& key, std::uint64_t token, std::uint32_t index) {
  return Real(random_bits(key, token, index) >> 8) * Real(0x1p-24);
}

/// Standard normal (Box and Muller), from the draws 2*index and 2*index + 1.
template <class Real>
KOKKOS_FUNCTION Real random_normal(const RandomKey& key, std::uint64_t token, std::uint32_t index) {
  const Real u = Real(1) - random_uniform<Real>(key, token, 2 * index);  // (0, 1]: its logarithm is finite
  const Real v = random_uniform<Real>(key, token, 2 * index + 1);
  return Kokkos::sqrt(Real(-2) * Kokkos::log(u)) * Kokkos::cos(Real(6.283185307179586) * v);
}

MOE_NAMESPACE_END
