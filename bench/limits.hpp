#pragma once
/// @file
/// What this machine can do: multiply-adds in registers, and reading memory, on the threads that layers use.

#include <Kokkos_Core.hpp>
#include <algorithm>
#include <chrono>
#include <vector>

namespace bench {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#if defined(__AVX512F__)
#  define MOE_BENCH_BYTES 64
#elif defined(__AVX__)
#  define MOE_BENCH_BYTES 32
#else
#  define MOE_BENCH_BYTES 16
#endif
typedef float Register __attribute__((vector_size(MOE_BENCH_BYTES)));
inline constexpr int lanes = MOE_BENCH_BYTES / 4;
#undef MOE_BENCH_BYTES

/// Twelve chains of multiply-adds, which is more than latency hides.
inline float multiply_adds(long rounds) {
  Register sums[12], factor, term;
  for (int l = 0; l < lanes; ++l) factor[l] = 0.999f, term[l] = 1e-3f;
  for (Register& sum : sums) sum = term;
  for (long r = 0; r < rounds; ++r) {
    for (Register& sum : sums) sum = sum * factor + term;
  }
  float total = 0;
  for (const Register& sum : sums) total += sum[0];
  return total;
}

inline float read(const float* from, std::size_t count) {
  Register sums[8] = {};
  for (std::size_t i = 0; i + 8 * lanes <= count; i += 8 * lanes) {
    for (int j = 0; j < 8; ++j) sums[j] += *reinterpret_cast<const Register*>(from + i + j * lanes);
  }
  float total = 0;
  for (const Register& sum : sums) total += sum[0];
  return total;
}

/// Runs f(thread) on each thread and returns the seconds of the best of some rounds.
template <class F>
double best_of(int rounds, const F& f) {
  const int threads = Kokkos::DefaultHostExecutionSpace().concurrency();
  double best = 1e30;
  Kokkos::View<float*, Kokkos::HostSpace> sink("sink", threads * 16);
  for (int r = 0; r < rounds; ++r) {
    const double start = now();
    Kokkos::parallel_for(
        "bench::limit",
        Kokkos::RangePolicy<Kokkos::DefaultHostExecutionSpace, Kokkos::Schedule<Kokkos::Static>>(0, threads)
            .set_chunk_size(1),
        [&](int thread) { sink(thread * 16) = f(thread); });
    best = std::min(best, now() - start);
  }
  return best;
}

/// The limits, measured anew at each call, since they move.
struct Limits {
  double gflops = 0;  ///< single precision, all threads
  double gbs = 0;     ///< bytes read from memory a second, in 1e9, all threads

  static Limits measure() {
    const int threads = Kokkos::DefaultHostExecutionSpace().concurrency();
    const long rounds = 2'000'000;
    Limits limits;
    limits.gflops =
        2e-9 * 12 * lanes * double(rounds) * threads / best_of(5, [&](int) { return multiply_adds(rounds); });
    static const Kokkos::View<float*, Kokkos::HostSpace> memory("bench::memory", std::size_t(96) << 20);
    const std::size_t part = memory.size() / threads / 256 * 256;
    limits.gbs = 1e-9 * double(part) * threads * sizeof(float) /
                 best_of(3, [&](int thread) { return read(memory.data() + thread * part, part); });
    return limits;
  }
};

}  // namespace bench
