// bench_optimizer: a step of AdamW and the gradients' norm on the host, beside the machine's bandwidth.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <moe/moe.hpp>
#include <nlohmann/json.hpp>

#include "limits.hpp"

namespace {

using moe::Index;
using Space = Kokkos::DefaultHostExecutionSpace;

struct Options {
  std::vector<Index> parameters{1'000'000, 16'000'000, 64'000'000};
  std::string dtype = "f32";
  int threads = 0;
  double seconds = 1;
  bool json = false;
};

template <class T>
struct Arrays {
  moe::Vector<T, Space> weight;
  template <class F, class... Same>
  static void visit(F&& f, Same&... same) {
    f("weight", same.weight...);
  }
};

/// Calls f for about as long as told and returns least and median seconds. The machine's limit is measured in between,
/// as both move when others work.
template <class F>
void measure(const Options& options, const std::string& what, Index parameters, double bytes, const F& f) {
  f();
  std::vector<double> times;
  const bool updates = what == "adamw";
  double limit = 0;
  const double begin = bench::now();
  while (times.size() < 5 || bench::now() - begin < options.seconds) {
    if (times.size() % 16 == 0)
      limit = std::max(limit, updates ? bench::update_bandwidth(3) : bench::read_bandwidth(3));
    const double start = bench::now();
    f();
    times.push_back(bench::now() - start);
  }
  std::sort(times.begin(), times.end());
  const double least = times.front(), median = times[times.size() / 2], count = double(parameters);
  const double gbs = bytes * count / least * 1e-9, share = gbs / limit;
  if (options.json) {
    const nlohmann::json line{{"impl", "moe"},
                              {"what", what},
                              {"dtype", options.dtype},
                              {"threads", Space().concurrency()},
                              {"parameters", parameters},
                              {"bytes_per_parameter", bytes},
                              {"min_ns_parameter", least * 1e9 / count},
                              {"med_ns_parameter", median * 1e9 / count},
                              {"gbs", gbs},
                              {"limit_gbs", limit},
                              {"share", share}};
    fmt::print("{}\n", line.dump());
  } else {
    fmt::print("{:<6} {:<5} {:>11} {:>6.0f} {:>9.3f} {:>9.3f} {:>8.1f} {:>8.1f} {:>7.0f}%\n", what, options.dtype,
               parameters, bytes, least * 1e9 / count, median * 1e9 / count, gbs, limit, 100 * share);
  }
  std::fflush(stdout);
}

template <class T>
void run(const Options& options) {
  for (const Index parameters : options.parameters) {
    Arrays<T> p{{"weight", std::size_t(parameters)}}, g{{"gradient", std::size_t(parameters)}};
    moe::fill_normal(Space{}, p.weight, moe::Seed{1});
    moe::fill_normal(Space{}, g.weight, moe::Seed{2});
    moe::Context<Space> ctx;
    moe::AdamW optimizer(p);
    measure(options, "adamw", parameters, 28, [&] { optimizer.step(ctx, p, g, 1e-4, 0.5); });
    measure(options, "norm", parameters, sizeof(T), [&] { moe::gradient_norm(ctx, g); });
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Times a step of AdamW (28 bytes a parameter) and the gradients' norm: nanoseconds a parameter."};
  app.option_defaults()->always_capture_default();
  app.add_option("--parameters", options.parameters, "numbers of parameters")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  app.add_option("--dtype", options.dtype, "of parameters and gradients; 16 bits have masters in f32")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  app.add_option("--threads", options.threads, "0: as many as Kokkos takes")->check(CLI::NonNegativeNumber);
  app.add_option("--seconds", options.seconds, "time for each measurement")->check(CLI::NonNegativeNumber);
  app.add_flag("--json", options.json, "one line a measurement");
  CLI11_PARSE(app, argc, argv);
  Kokkos::InitializationSettings settings;
  if (options.threads > 0) settings.set_num_threads(options.threads);
  Kokkos::ScopeGuard kokkos(settings);
  if (!options.json) {
    fmt::print("{} threads; bytes are those read and written, the limit is the machine's with the same mix\n",
               Space().concurrency());
    fmt::print("{:<6} {:<5} {:>11} {:>6} {:>9} {:>9} {:>8} {:>8} {:>8}\n", "", "", "parameters", "bytes", "best ns",
               "median ns", "GB/s", "limit", "share");
  }
  try {
    if (options.dtype == "f32") {
      run<float>(options);
    } else if (options.dtype == "bf16") {
      run<moe::bfloat16>(options);
    } else {
      run<moe::float16>(options);
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
