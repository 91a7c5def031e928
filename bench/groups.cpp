// bench_groups: products of many small groups of rows, as experts of low rank need them, beside the machine's limits.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <moe/moe.hpp>
#include <nlohmann/json.hpp>

#include "limits.hpp"

namespace {

using moe::Index;
using Space = Kokkos::DefaultHostExecutionSpace;
using Matrix = moe::Matrix<float, Space>;
using Tensor = moe::Tensor3<float, Space>;

struct Options {
  Index hidden = 2048, groups = 256, rows = 8;
  std::vector<Index> ranks{4, 16, 64};
  double seconds = 1;
  int threads = 0;
  bool json = false;
};

void print(const Options& options, const char* what, Index rank, double seconds, double flops, double bytes,
           const bench::Limits& limits) {
  const double bound = std::max(flops / limits.gflops, bytes / limits.gbs) * 1e-9 / seconds;
  if (options.json) {
    const nlohmann::json line{{"impl", "moe"},
                              {"what", what},
                              {"hidden", options.hidden},
                              {"groups", options.groups},
                              {"rows", options.rows},
                              {"rank", rank},
                              {"threads", Space().concurrency()},
                              {"min_s", seconds},
                              {"gflops", flops / seconds * 1e-9},
                              {"gbs", bytes / seconds * 1e-9},
                              {"bound_share", bound}};
    fmt::print("{}\n", line.dump());
  } else {
    fmt::print("{:>5}  {:<14} {:>9.3f} {:>9.1f} {:>7.1f} {:>8.0f}%\n", rank, what, seconds * 1e3,
               flops / seconds * 1e-9, bytes / seconds * 1e-9, 100 * bound);
  }
  std::fflush(stdout);
}

/// x (R, H) to t (R, rank) by A, t to y (R, H) by B, and back: what one adapter a group takes. Bytes are those of
/// operands and results, each counted once.
void run(const Options& options, Index rank) {
  const Index h = options.hidden, e = options.groups, r = e * options.rows;
  const Space space{};
  Matrix x("x", r, h), t("t", r, rank), y("y", r, h), dt("dt", r, rank), dx("dx", r, h);
  Tensor a("a", e, rank, h), b("b", e, h, rank), da("da", e, rank, h), db("db", e, h, rank);
  moe::fill_normal(space, x, moe::Seed{1});
  moe::fill_normal(space, a, moe::Seed{2});
  moe::fill_normal(space, b, moe::Seed{3});
  moe::Vector<Index, Space> offsets("offsets", e + 1);
  for (Index i = 0; i <= e; ++i) offsets(i) = i * options.rows;
  const auto forward = [&] {
    moe::kernels::grouped_forward<float, Space>(space, offsets, x, a, t);
    moe::kernels::grouped_forward<float, Space>(space, offsets, t, b, y);
  };
  const auto backward = [&] {
    moe::kernels::grouped_backward_rows<float, Space>(space, offsets, y, b, dt);
    moe::kernels::grouped_backward_weight<float, Space>(space, offsets, y, t, db);
    moe::kernels::grouped_backward_rows<float, Space>(space, offsets, dt, a, dx);
    moe::kernels::grouped_backward_weight<float, Space>(space, offsets, dt, x, da);
  };
  const bench::Limits before = bench::Limits::measure();
  const double one = bench::least(options.seconds, forward), other = bench::least(options.seconds, backward);
  const bench::Limits after = bench::Limits::measure();
  const bench::Limits& limits = before.gflops > after.gflops ? before : after;
  const double flops = 4.0 * double(r * h * rank), weights = 8.0 * double(e * rank * h), rows = 4.0 * double(r * h);
  print(options, "forward", rank, one, flops, weights + 2 * rows, limits);
  print(options, "backward", rank, other, 2 * flops, 3 * weights + 3 * rows, limits);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Times the products of many small groups, forward and backward: x A^T, and that by B^T, in f32."};
  app.option_defaults()->always_capture_default();
  app.add_option("--hidden", options.hidden, "width of rows")->check(CLI::PositiveNumber);
  app.add_option("--groups", options.groups, "groups, each with matrices of its own")->check(CLI::PositiveNumber);
  app.add_option("--rows", options.rows, "of a group")->check(CLI::PositiveNumber);
  app.add_option("--ranks", options.ranks, "of A and B")->delimiter(',')->check(CLI::PositiveNumber);
  app.add_option("--seconds", options.seconds, "time for each measurement")->check(CLI::NonNegativeNumber);
  app.add_option("--threads", options.threads, "0: as many as Kokkos takes")->check(CLI::NonNegativeNumber);
  app.add_flag("--json", options.json, "one line a measurement");
  CLI11_PARSE(app, argc, argv);
  Kokkos::InitializationSettings settings;
  if (options.threads > 0) settings.set_num_threads(options.threads);
  Kokkos::ScopeGuard kokkos(settings);
  if (!options.json) {
    fmt::print("{} groups of {} rows, hidden {}, {} threads\n", options.groups, options.rows, options.hidden,
               Space().concurrency());
    fmt::print("{:>5}  {:<14} {:>9} {:>9} {:>7} {:>9}\n", "rank", "", "min ms", "GFLOP/s", "GB/s", "of bound");
  }
  for (const Index rank : options.ranks) run(options, rank);
}
