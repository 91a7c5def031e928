// bench_routing: what comes before and after the experts on the host: routers, dispatch, gather and combine.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <moe/models/classical.hpp>
#include <moe/moe.hpp>
#include <nlohmann/json.hpp>

#include "limits.hpp"

namespace {

using moe::Index;
using Space = Kokkos::DefaultHostExecutionSpace;
using Rows = moe::Matrix<float, Space>;

struct Options {
  Index tokens = 4096, hidden = 1792;
  std::vector<Index> experts{8, 64, 256, 512};
  std::string router = "all";
  int threads = 0;
  double seconds = 0.4;
  bool json = false;
};

struct Times {
  double best, median;
};

/// Calls f for about as long as told, at least three times after one that does not count.
template <class F>
Times measure(const Options& options, const F& f) {
  f();
  std::vector<double> times;
  const double end = bench::now() + options.seconds;
  while (times.size() < 3 || bench::now() < end) {
    const double start = bench::now();
    f();
    times.push_back(bench::now() - start);
  }
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

void print(const Options& options, const std::string& what, Index experts, Index k, Index hidden, bool product,
           const Times& times, double bytes = 0) {
  const double tokens = double(options.tokens);
  if (options.json) {
    const nlohmann::json line{{"impl", "moe"},
                              {"what", what},
                              {"threads", Space().concurrency()},
                              {"T", options.tokens},
                              {"E", experts},
                              {"K", k},
                              {"H", hidden},
                              {"product", product},
                              {"min_ns_token", times.best * 1e9 / tokens},
                              {"med_ns_token", times.median * 1e9 / tokens},
                              {"gbs", bytes / times.best * 1e-9}};
    fmt::print("{}\n", line.dump());
  } else {
    fmt::print("{:<28} {:>5} {:>3} {:>6} {:>10.1f} {:>10.1f}", product ? what + ", with product" : what, experts, k,
               hidden, times.best * 1e9 / tokens, times.median * 1e9 / tokens);
    if (bytes > 0) fmt::print(" {:>8.1f}", bytes / times.best * 1e-9);
    fmt::print("\n");
  }
  std::fflush(stdout);
}

/// A batch with all that a router can ask for.
moe::Batch<float, Space> batch_of(const Rows& x) {
  moe::Batch<float, Space> batch;
  batch.x = x;
  moe::Vector<std::int32_t, Space> ids("ids", x.extent(0));
  for (std::size_t t = 0; t < ids.size(); ++t) ids(t) = std::int32_t(t * 7919 % 50000);
  batch.token_ids = ids;
  return batch;
}

template <class Router>
Times time(const Options& options, const Router& router, Index experts, Index width, bool training,
           moe::Routing<float, Space>& routing) {
  const Space space{};
  Rows x("x", options.tokens, width);
  moe::fill_normal(space, x, moe::Seed{1});
  auto batch = batch_of(x);
  const moe::RouterShape shape{experts, width};
  auto parameters = router.template parameters<float, Space>(shape);
  std::uint64_t seed = 2;
  std::remove_cvref_t<decltype(parameters)>::visit(
      [&](std::string_view, const auto& view) {
        if constexpr (std::remove_cvref_t<decltype(view)>::rank == 2) {
          moe::fill_normal(space, view, moe::Seed{seed++});
          for (std::size_t i = 0; i < view.size(); ++i) view.data()[i] *= 1 / std::sqrt(float(width));
        }
      },
      parameters);
  const auto buffers = router.template buffers<float, Space>(shape);
  moe::Context<Space> ctx;
  ctx.training = training;
  return measure(options, [&] { router.forward(ctx, batch, parameters, buffers, experts, routing); });
}

/// A router by the source of its logits: given ones leave the product out of the time.
template <class... Policies>
void router(const Options& options, const std::string& name, Index k, Index at_least, bool training,
            const Policies&... values) {
  if (options.router != "all" && options.router != name) return;
  for (Index experts : options.experts) {
    if (experts < at_least) continue;
    moe::Routing<float, Space> routing;
    const moe::Router<moe::GivenLogits, Policies...> bare{values...};
    print(options, name, experts, k, 0, false, time(options, bare, experts, experts, training, routing));
    const moe::Router<moe::LinearLogits, Policies...> whole{values...};
    print(options, name, experts, k, options.hidden, true,
          time(options, whole, experts, options.hidden, training, routing));
  }
}

void routers(const Options& options) {
  using moe::TopK;
  router(options, "softmax", 2, 2, false, moe::Softmax{}, TopK<2>{}, moe::NormalizeSum{});
  router(options, "switch", 1, 1, false, moe::Softmax{}, TopK<1>{});
  router(options, "deepseek-v2", 6, 6, false, moe::Softmax{}, TopK<6>{});
  router(options, "deepseek-v3", 8, 16, false, moe::Sigmoid{}, TopK<8>{}, moe::GroupLimit<8, 4, moe::BestTwo>{},
         moe::BiasBalancer{}, moe::NormalizeSum{}, moe::Scale{2.5});
  router(options, "expert-choice", 2, 2, false, moe::Softmax{}, moe::ExpertChoice{});
  router(options, "sinkhorn", 1, 2, true, moe::Sigmoid{}, moe::ChooseByLogits{}, moe::Sinkhorn<1>{});
  router(options, "base", 1, 2, true, moe::Sigmoid{}, moe::ChooseByLogits{}, moe::BalancedAssignment{});
  for (Index experts : options.experts) {
    moe::Routing<float, Space> routing;
    if (options.router == "all" || options.router == "hash") {
      print(options, "hash", experts, 1, 0, false, time(options, moe::hash_router(50000), experts, 1, false, routing));
    }
    if ((options.router == "all" || options.router == "noisy") && experts >= 4) {
      // Its noise is part of its source of logits: an input of width 1 makes the products small.
      print(options, "noisy", experts, 4, 1, false, time(options, moe::NoisyTopKRouter{}, experts, 1, true, routing));
      print(options, "noisy", experts, 4, options.hidden, true,
            time(options, moe::NoisyTopKRouter{}, experts, options.hidden, true, routing));
    }
  }
}

/// Dispatch, gather and combine of a router's choices; bytes are those that must move at least.
void rows(const Options& options, Index experts, int k, Index hidden) {
  moe::Routing<float, Space> routing;
  using Router = moe::Router<moe::GivenLogits, moe::Softmax, moe::TopK<>>;
  time(options, Router{moe::TopK<>{k}}, experts, experts, false, routing);
  Rows x("x", options.tokens, hidden), gathered("rows", options.tokens * k, hidden), y("y", options.tokens, hidden);
  moe::fill_normal(Space{}, x, moe::Seed{3});
  const auto batch = batch_of(x);
  moe::Context<Space> ctx;
  moe::DispatchPlan<Space> plan;
  const auto& assignments = routing.assignments;
  const moe::CapacityPolicy<moe::Dropless> capacity;
  print(options, "dispatch", experts, k, hidden, false,
        measure(options, [&] { moe::dispatch(ctx, assignments, batch, experts, capacity, plan); }));
  const double row = double(options.tokens * hidden) * sizeof(float);
  print(options, "gather", experts, k, hidden, false,
        measure(options, [&] { moe::gather<float, Space>(ctx, x, plan, gathered); }), row * (k + 1));
  const moe::Vector<const float, Space> weight = assignments.weight;
  print(options, "combine", experts, k, hidden, false,
        measure(options, [&] { moe::combine<float, float, Space>(ctx, gathered, weight, plan, y); }), row * (k + 1));
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Times routers, dispatch, gather and combine: nanoseconds a token."};
  app.option_defaults()->always_capture_default();
  app.add_option("--tokens", options.tokens, "tokens of a batch")->check(CLI::PositiveNumber);
  app.add_option("--hidden", options.hidden, "width of the router's input")->check(CLI::PositiveNumber);
  app.add_option("--experts", options.experts, "numbers of experts")->delimiter(',')->check(CLI::PositiveNumber);
  app.add_option("--router", options.router, "one router alone, or none")
      ->check(CLI::IsMember({"all", "none", "softmax", "switch", "deepseek-v2", "deepseek-v3", "expert-choice",
                             "sinkhorn", "base", "hash", "noisy"}));
  app.add_option("--threads", options.threads, "0: as many as Kokkos takes")->check(CLI::NonNegativeNumber);
  app.add_option("--seconds", options.seconds, "time for each measurement")->check(CLI::NonNegativeNumber);
  app.add_flag("--json", options.json, "one line a measurement");
  CLI11_PARSE(app, argc, argv);
  Kokkos::InitializationSettings settings;
  if (options.threads > 0) settings.set_num_threads(options.threads);
  Kokkos::ScopeGuard kokkos(settings);
  if (!options.json) {
    fmt::print("{} tokens, {} threads; ns a token\n", options.tokens, Space().concurrency());
    fmt::print("{:<28} {:>5} {:>3} {:>6} {:>10} {:>10} {:>8}\n", "", "E", "K", "H", "best", "median", "GB/s");
  }
  try {
    routers(options);
    if (options.router == "all" || options.router == "none") {
      rows(options, 256, 8, 1792);
      rows(options, 64, 6, 1024);
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
