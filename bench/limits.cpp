// bench_limits: what this machine could do at best, now.
#include "limits.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

namespace {

void print(const bench::Limits& limits, bool json) {
  const int threads = Kokkos::DefaultHostExecutionSpace().concurrency();
  if (json) {
    const nlohmann::json line{
        {"threads", threads},      {"instructions", bench::instructions()}, {"compiler", MOE_BENCH_COMPILER},
        {"gflops", limits.gflops}, {"bf16_gflops", limits.bf16_gflops},     {"int8_gflops", limits.int8_gflops},
        {"gbs", limits.gbs},       {"huge_pages", limits.huge_pages}};
    fmt::print("{}\n", line.dump());
  } else {
    fmt::print("{} threads, {}: {:.0f} GFLOP/s in f32, {:.0f} in bf16, {:.0f} in int8; {:.1f} GB/s read in {} pages\n",
               threads, bench::instructions(), limits.gflops, limits.bf16_gflops, limits.int8_gflops, limits.gbs,
               limits.huge_pages ? "2 MiB" : "ordinary");
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 1;
  bool json = false;
  CLI::App app{"Measures multiply-adds in registers, reading memory and updating it, on all threads."};
  app.add_option("--rounds", rounds, "measurements, one after the other")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_flag("--json", json, "one line a measurement");
  CLI11_PARSE(app, argc, argv);
  Kokkos::ScopeGuard kokkos(argc, argv);
  for (int r = 0; r < rounds; ++r) print(bench::Limits::measure(), json);
}
