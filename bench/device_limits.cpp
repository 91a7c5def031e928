// bench_device_limits: a GPU's name, its peak in bf16 by a large product of cuBLAS, and the bandwidth of copies.
#include "device_limits.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#if defined(MOE_BENCH_CUBLAS)
#  include <cublas_v2.h>
#endif

namespace {

#if defined(MOE_BENCH_CUBLAS)
using Numbers = Kokkos::View<std::uint16_t*, Kokkos::CudaSpace>;

/// Between 0.5 and 2, of both signs. Equal numbers draw less power, and a GPU multiplies them faster.
struct RandomNumbers {
  Numbers numbers;
  std::uint32_t seed;
  KOKKOS_FUNCTION void operator()(std::size_t i) const {
    std::uint32_t x = std::uint32_t(i) * 2654435761u + seed;
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    numbers(i) = std::uint16_t(0x3f00 + (x >> 24) + (x & 0x8000));
  }
};
#endif

/// Operations a second, in 1e12: the best of `rounds` products of n x n numbers in bf16 with sums in f32.
#if defined(MOE_BENCH_CUBLAS)
double bf16_peak(int n, int rounds) {
  const Kokkos::Cuda space{};
  const std::size_t count = std::size_t(n) * n;
  const Numbers a("a", count), b("b", count), c("c", count);
  const Kokkos::RangePolicy<Kokkos::Cuda> all(space, 0, count);
  Kokkos::parallel_for("fill", all, RandomNumbers{a, 1});
  Kokkos::parallel_for("fill", all, RandomNumbers{b, 2});
  cublasHandle_t handle = nullptr;
  if (cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) return 0;
  cublasSetStream(handle, space.cuda_stream());
  const float one = 1, zero = 0;
  double best = 1e30;
  for (int r = 0; r < rounds + 2; ++r) {
    const double start = bench::now();
    const bool done = cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, a.data(), CUDA_R_16BF, n, b.data(),
                                   CUDA_R_16BF, n, &zero, c.data(), CUDA_R_16BF, n, CUBLAS_COMPUTE_32F,
                                   CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS;
    space.fence();
    if (!done) return 0;
    if (r >= 2) best = std::min(best, bench::now() - start);
  }
  cublasDestroy(handle);
  return 2e-12 * double(n) * n * n / best;
}
#else
double bf16_peak(int, int) {
  return 0;
}
#endif

}  // namespace

int main(int argc, char** argv) {
  int size = 8192, rounds = 10;
  CLI::App app{"Measures a GPU's peak in bf16 (0 where cuBLAS was not found) and the bandwidth of copies."};
  app.add_option("--size", size, "of the square product")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--rounds", rounds, "of which the best counts")->capture_default_str()->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  const Kokkos::ScopeGuard kokkos;
  const nlohmann::json line{{"device", bench::device_name()},
                            {"bf16_tflops", bf16_peak(size, rounds)},
                            {"copy_gbs", bench::copy_bandwidth(rounds)}};
  fmt::print("{}\n", line.dump());
}
