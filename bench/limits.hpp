#pragma once
/// @file
/// What this machine can do: multiply-adds in registers, reading memory and updating it, on the threads that layers
/// use.

#include <Kokkos_Core.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>

#include "pages.hpp"

#if defined(__AVX512BF16__) || defined(__AVX2__)
#  include <immintrin.h>
#endif

namespace bench {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The least seconds of f, called for about `seconds`.
template <class F>
double least(double seconds, const F& f) {
  f();
  double best = 1e30, spent = 0;
  for (int calls = 0; calls < 5 || spent < seconds; ++calls) {
    const double start = now();
    f();
    const double took = now() - start;
    best = std::min(best, took);
    spent += took;
  }
  return best;
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

/// The widest instructions that this program was compiled for.
inline std::string instructions() {
#if defined(__AVX512BF16__)
  return "AVX-512 with bf16";
#elif defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__) && defined(__FMA__)
  return "AVX2 with FMA";
#elif defined(__AVX__)
  return "AVX";
#else
  return "16-byte registers";
#endif
}

inline constexpr int chains = 12;  ///< independent sums: more than the latency of a multiply-add hides

inline float multiply_adds(long rounds) {
  Register sums[chains], factor, term;
  for (int l = 0; l < lanes; ++l) factor[l] = 0.999f, term[l] = 1e-3f;
  for (Register& sum : sums) sum = term;
  for (long r = 0; r < rounds; ++r) {
    for (Register& sum : sums) sum = sum * factor + term;
  }
  float total = 0;
  for (const Register& sum : sums) total += sum[0];
  return total;
}

#if defined(__AVX512BF16__)
/// Each instruction adds two products of bf16 to each of 16 sums.
inline float bf16_multiply_adds(long rounds) {
  __m512 sums[chains];
  for (int c = 0; c < chains; ++c) sums[c] = _mm512_set1_ps(1e-3f * float(c));  // equal chains might be merged
  const __m512bh factor = _mm512_cvtne2ps_pbh(sums[1], sums[1]);
  for (long r = 0; r < rounds; ++r) {
    for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, factor, factor);
  }
  float total = 0;
  for (const __m512& sum : sums) total += _mm512_cvtss_f32(sum);
  return total;
}
#endif

/// Products of int8 numbers, added in int32: in one instruction where there is one, else as int16 pairs. The empty asm
/// keeps every product, and its addition behind it.
inline float int8_multiply_adds(long rounds) {
#if defined(__x86_64__)
#  if defined(__AVX512VNNI__)
  using Sum = __m512i;
  const auto add = [](Sum a, Sum f) { return _mm512_dpbusd_epi32(a, f, f); };
#  elif defined(__AVX512BW__)
  using Sum = __m512i;
  const auto add = [](Sum a, Sum f) { return _mm512_add_epi32(a, _mm512_madd_epi16(f, f)); };
#  elif defined(__AVX2__)
  using Sum = __m256i;
  const auto add = [](Sum a, Sum f) { return _mm256_add_epi32(a, _mm256_madd_epi16(f, f)); };
#  else
  using Sum = __m128i;
  const auto add = [](Sum a, Sum f) { return _mm_add_epi32(a, _mm_madd_epi16(f, f)); };
#  endif
  Sum sums[chains] = {}, factor = {};
  for (long r = 0; r < rounds; ++r) {
    for (Sum& sum : sums) {
      Sum next = add(sum, factor);
      asm volatile("" : "+v"(next), "+v"(factor));
      sum = next;
    }
  }
  float total = 0;
  for (const Sum& sum : sums) total += float(sum[0]);
  return total;
#else
  return multiply_adds(rounds);
#endif
}
/// Products in one round of a chain.
#if defined(__AVX512VNNI__)
inline constexpr int int8_products = 64;
#elif defined(__AVX512BW__)
inline constexpr int int8_products = 32;
#elif defined(__AVX2__)
inline constexpr int int8_products = 16;
#else
inline constexpr int int8_products = 8;
#endif

inline float read(const float* from, std::size_t count) {
  Register sums[8] = {};
  for (std::size_t i = 0; i + 8 * lanes <= count; i += 8 * lanes) {
    for (int j = 0; j < 8; ++j) sums[j] += *reinterpret_cast<const Register*>(from + i + j * lanes);
  }
  float total = 0;
  for (const Register& sum : sums) total += sum[0];
  return total;
}

/// What an optimiser does to memory, and no arithmetic to speak of: three arrays of a quarter of `count` each are read
/// and written in place, and the fourth is read. AdamW in f32 so reads 16 bytes a parameter and writes 12.
inline float update(float* from, std::size_t count) {
  const std::size_t quarter = count / 4;
  float *a = from, *b = a + quarter, *c = b + quarter, *d = c + quarter;
  for (std::size_t i = 0; i + lanes <= quarter; i += lanes) {
    const Register step = *reinterpret_cast<const Register*>(d + i);
    for (float* array : {a, b, c}) *reinterpret_cast<Register*>(array + i) += step;
  }
  return a[0];
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

/// 384 MiB, more than caches hold, cut into a part for each thread in the memory nearest to it.
struct Probe {
  std::size_t part;  // numbers
  Pages memory;

  static const Probe& get() {
    static const Probe probe;
    return probe;
  }
  /// Gigabytes a second, where f(its data, its numbers) moves `bytes` for each number: the best of some rounds.
  template <class F>
  double bandwidth(int rounds, double bytes, const F& f) const {
    const double seconds = best_of(rounds, [&](int thread) { return f(memory.data() + thread * part, part); });
    return 1e-9 * bytes * double(part) * Kokkos::DefaultHostExecutionSpace().concurrency() / seconds;
  }

 private:
  Probe()
      : part((std::size_t(96) << 20) / Kokkos::DefaultHostExecutionSpace().concurrency() / 256 * 256),
        memory(part * Kokkos::DefaultHostExecutionSpace().concurrency()) {
    bandwidth(1, 4, [](float* data, std::size_t size) {
      std::fill_n(data, size, 1.0f);
      return 0.0f;
    });
  }
};

/// Bytes read from memory a second, in 1e9, all threads. What lay in the caches before is gone behind it.
inline double read_bandwidth(int rounds) {
  return Probe::get().bandwidth(rounds, 4, [](const float* data, std::size_t size) { return read(data, size); });
}
/// Bytes read and written a second, in 1e9, all threads: four read to three written.
inline double update_bandwidth(int rounds) {
  return Probe::get().bandwidth(rounds, 7, [](float* data, std::size_t size) { return update(data, size); });
}

/// The limits, measured anew at each call, since they move.
struct Limits {
  double gflops = 0;       ///< single precision, all threads
  double bf16_gflops = 0;  ///< bf16 with sums in single precision; `gflops` where it is computed in single precision
  double int8_gflops = 0;  ///< int8 with sums in int32
  double gbs = 0;          ///< bytes read from memory a second, in 1e9, all threads
  bool huge_pages = false;

  static Limits measure() {
    const int threads = Kokkos::DefaultHostExecutionSpace().concurrency();
    const long rounds = 2'000'000;
    const double products = 1e-9 * chains * lanes * double(rounds) * threads;
    Limits limits;
    limits.gflops = 2 * products / best_of(5, [&](int) { return multiply_adds(rounds); });
#if defined(__AVX512BF16__)
    limits.bf16_gflops = 4 * products / best_of(5, [&](int) { return bf16_multiply_adds(rounds); });
#else
    limits.bf16_gflops = limits.gflops;
#endif
    limits.int8_gflops = 2e-9 * chains * int8_products * double(rounds) * threads /
                         best_of(5, [&](int) { return int8_multiply_adds(rounds); });
    limits.gbs = read_bandwidth(3);
    limits.huge_pages = Probe::get().memory.huge();
    return limits;
  }
};

}  // namespace bench
