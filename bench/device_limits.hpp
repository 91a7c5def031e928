#pragma once
/// @file
/// On a device, what stands in the place of limits.hpp: its name, the clock, and the bandwidth of copies. The peak of
/// its products is bench_device_limits' to measure.

#include <Kokkos_Core.hpp>
#include <algorithm>
#include <chrono>
#include <string>

namespace bench {

inline std::string device_name() {
#if defined(KOKKOS_ENABLE_CUDA)
  return Kokkos::Cuda().cuda_device_prop().name;
#else
  return Kokkos::HIP().hip_device_prop().name;
#endif
}

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Bytes read and written a second, in 1e9, by a copy of 512 MiB: the best of some rounds. What lay in the caches
/// before is gone behind it.
inline double copy_bandwidth(int rounds) {
  using Space = Kokkos::DefaultExecutionSpace;
  using Bytes = Kokkos::View<double*, Space::memory_space>;
  static const std::size_t count = std::size_t(64) << 20;
  const Space space{};
  const Bytes from("from", count), to("to", count);  // not kept: layers need the memory
  double best = 1e30;
  space.fence();
  for (int r = 0; r < rounds; ++r) {
    const double start = now();
    Kokkos::deep_copy(space, to, from);
    space.fence();
    best = std::min(best, now() - start);
  }
  return 2e-9 * 8 * double(count) / best;
}
inline double read_bandwidth(int rounds) {
  return copy_bandwidth(rounds);
}

/// The same fields as a host's; peaks stay 0, which means unknown.
struct Limits {
  double gflops = 0, bf16_gflops = 0, int8_gflops = 0;
  double gbs = 0;  ///< of a copy
  static Limits measure() {
    Limits limits;
    limits.gbs = copy_bandwidth(5);
    return limits;
  }
};

}  // namespace bench
