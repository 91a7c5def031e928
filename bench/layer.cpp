// bench_layer: a whole layer's forward pass on the host, beside what the machine could do at best.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>
#include <moe/moe.hpp>
#include <nlohmann/json.hpp>

#include "limits.hpp"
#include "stages.hpp"

namespace {

using moe::Index;
using Space = Kokkos::DefaultHostExecutionSpace;

/// Sizes as the papers' models have them, divided so that a laptop holds them.
struct Shape {
  std::string router;  // mixtral, deepseek-v2, deepseek-v3 or switch
  Index hidden, intermediate, experts, top_k, shared, groups, kept_groups;

  Index matrices() const { return router == "switch" ? 2 : 3; }
  double flops(Index tokens) const {
    return 2.0 * double(matrices() * hidden * intermediate * (top_k + shared) * tokens);
  }
  double expert_numbers() const { return double(matrices() * hidden * intermediate); }
};

const std::map<std::string, Shape> shapes{{"mixtral-s", {"mixtral", 1024, 3584, 8, 2, 0, 1, 1}},
                                          {"dsmoe-s", {"deepseek-v2", 1024, 704, 64, 6, 2, 1, 1}},
                                          {"dsv3-s", {"deepseek-v3", 1792, 512, 256, 8, 1, 8, 4}},
                                          {"switch", {"switch", 768, 3072, 8, 1, 0, 1, 1}}};

struct Options {
  std::string name = "dsmoe-s", dtype = "f32", layout = "packed";
  std::vector<Index> tokens{512, 2048};
  double skew = 0;
  int repeats = 7, threads = 0;
  bool json = false;
};

/// Times one layer at each number of tokens.
template <class Layer>
void time(const Shape& shape, const Options& options, const Layer& layer) {
  using T = typename Layer::Scalar;
  const Space space{};
  for (Index tokens : options.tokens) {
    moe::Matrix<T, Space> x("x", tokens, shape.hidden);
    moe::fill_normal(space, x, moe::Seed{1});
    for (Index t = 0; t < tokens; ++t) x(t, 0) = T(1);
    moe::Context<Space> ctx;
    ctx.training = false;
    typename Layer::Tape tape;
    layer.forward(ctx, x, tape);
    const bench::Limits before = bench::Limits::measure();
    text::Stages::reset();
    std::vector<double> times;
    for (int r = 0; r < options.repeats; ++r) {
      const double start = bench::now();
      layer.forward(ctx, x, tape);
      times.push_back(bench::now() - start);
    }
    const auto shares = text::Stages::shares();
    const bench::Limits after = bench::Limits::measure();
    std::sort(times.begin(), times.end());

    const moe::LoadReport load = moe::load_report(tape);
    const double touched =
        double(std::count_if(load.kept.begin(), load.kept.end(), [](Index n) { return n > 0; }) + shape.shared) *
        shape.expert_numbers() * sizeof(T);
    const double best = times.front(), median = times[times.size() / 2], flops = shape.flops(tokens);
    const auto peak = [&](const bench::Limits& limits) { return sizeof(T) == 2 ? limits.bf16_gflops : limits.gflops; };
    const double gflops = std::max(peak(before), peak(after)), gbs = std::max(before.gbs, after.gbs);
    const double bound = std::max(flops / gflops, touched / gbs) * 1e-9;
    if (options.json) {
      nlohmann::json line{{"impl", "moe"},
                          {"shape", options.name},
                          {"dtype", options.dtype},
                          {"layout", options.layout},
                          {"instruction_set", moe::instruction_set()},
                          {"threads", space.concurrency()},
                          {"T", tokens},
                          {"min_s", best},
                          {"med_s", median},
                          {"gflops", flops / best * 1e-9},
                          {"gbs", touched / best * 1e-9},
                          {"bound_share", bound / best},
                          {"peak_gflops", gflops},
                          {"peak_gbs", gbs},
                          {"maximum_violation", load.maximum_violation()},
                          {"stages", shares}};
      fmt::print("{}\n", line.dump());
    } else {
      fmt::print("{:>6} {:>9.3f} {:>9.3f} {:>9.1f} {:>7.1f} {:>8.1f}%  ", tokens, best * 1e3, median * 1e3,
                 flops / best * 1e-9, touched / best * 1e-9, 100 * bound / best);
      for (const auto& [stage, share] : shares) {
        if (share >= 0.005) fmt::print(" {} {:.0f}%", stage, 100 * share);
      }
      fmt::print("\n");
    }
    std::fflush(stdout);
  }
}

template <class Router, class Experts, class... More, class... Values>
void run(const Shape& shape, const Options& options, const Router& router, const Values&... values) {
  moe::MoEConfig config{.hidden = shape.hidden, .intermediate = shape.intermediate, .experts = shape.experts};
  using Layer = moe::MoELayer<Router, Experts, moe::On<Space>, More...>;
  auto layer = std::make_unique<Layer>(config, router, values..., moe::Seed{2});
  // The first input is 1 for every token, so that the router's first column is a bias: popularity by rank.
  auto& weight = layer->parameters.router.weight;
  for (Index e = 0; e < shape.experts; ++e) weight(e, 0) = float(-options.skew * std::log(double(e + 1)));
  if (!options.json) {
    const bench::Limits limits = bench::Limits::measure();
    fmt::print(
        "{}: hidden {}, intermediate {}, {} experts, {} a token, {} shared; {} {}; {}, {} threads; {:.0f} GFLOP/s, "
        "{:.1f} GB/s\n",
        options.name, shape.hidden, shape.intermediate, shape.experts, shape.top_k, shape.shared, options.layout,
        options.dtype, moe::instruction_set(), Space().concurrency(),
        options.dtype == "bf16" ? limits.bf16_gflops : limits.gflops, limits.gbs);
    fmt::print("{:>6} {:>9} {:>9} {:>9} {:>7} {:>9}  time by stage\n", "tokens", "min ms", "median", "GFLOP/s", "GB/s",
               "of bound");
  }
  if (options.layout == "plain") return time(shape, options, *layer);
  const auto packed = [&](auto type) {
    const auto fast = moe::pack<decltype(type)>(*layer);
    layer.reset();
    time(shape, options, fast);
  };
  if (options.dtype == "bf16") return packed(moe::bfloat16{});
  packed(float{});
}

void run(const Shape& shape, const Options& options) {
  using moe::NormalizeSum;
  using moe::TopK;
  using SwiGLU = moe::ExpertFFN<moe::SwiGLU>;
  const TopK<> top{int(shape.top_k)};
  moe::SharedExperts<1> shared;
  shared.intermediate = std::max<Index>(shape.shared, 1) * shape.intermediate;
  const auto with_shared = [&]<class Router>(const Router& router) {
    if (shape.shared == 0) return run<Router, SwiGLU>(shape, options, router);
    run<Router, SwiGLU, moe::SharedExperts<1>>(shape, options, router, shared);
  };
  if (shape.router == "mixtral") {
    using Router = moe::Router<moe::Softmax, TopK<>, NormalizeSum>;
    run<Router, SwiGLU>(shape, options, Router{top});
  } else if (shape.router == "deepseek-v2") {
    with_shared(moe::Router<moe::Softmax, TopK<>>{top});
  } else if (shape.router == "deepseek-v3") {
    using Groups = moe::GroupLimit<0, 0, moe::BestTwo>;
    Groups groups;
    groups.groups = int(shape.groups);
    groups.kept = int(shape.kept_groups);
    with_shared(moe::Router<moe::Sigmoid, TopK<>, Groups, moe::BiasBalancer, NormalizeSum, moe::Scale>{
        top, groups, moe::Scale{2.5}});
  } else {
    using Router = moe::Router<moe::Softmax, TopK<>>;
    run<Router, moe::ExpertFFN<moe::ReLU>>(shape, options, Router{top});
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  Shape own{"deepseek-v2", 0, 0, 0, 2, 1, 1, 1};
  CLI::App app{"Times a layer's forward pass: router, dispatch, experts, combine and shared experts."};
  app.option_defaults()->always_capture_default();
  auto* name = app.add_option("--shape", options.name, "sizes of a published model, divided")
                   ->check(CLI::IsMember({"mixtral-s", "dsmoe-s", "dsv3-s", "switch"}));
  auto* hidden = app.add_option("--hidden", own.hidden, "sizes of your own")->excludes(name);
  app.add_option("--intermediate", own.intermediate, "of one expert")->needs(hidden);
  app.add_option("--experts", own.experts, "number of experts")->needs(hidden);
  app.add_option("--top-k", own.top_k, "experts a token")->needs(hidden);
  app.add_option("--groups", own.groups, "of experts, of which a token uses half: DeepSeek-V3's router; 1: a softmax's")
      ->needs(hidden)
      ->check(CLI::PositiveNumber);
  app.add_option("--shared", own.shared, "shared experts")->needs(hidden)->check(CLI::NonNegativeNumber);
  app.add_option("--tokens", options.tokens, "numbers of tokens")->delimiter(',')->check(CLI::PositiveNumber);
  app.add_option("--dtype", options.dtype, "type of weights and tokens")->check(CLI::IsMember({"f32", "bf16"}));
  app.add_option("--layout", options.layout, "packed: as moe::pack makes it; plain: as it is trained, f32")
      ->check(CLI::IsMember({"packed", "plain"}));
  app.add_option("--threads", options.threads, "of Kokkos' pool; 0: all there are")->check(CLI::NonNegativeNumber);
  app.add_option("--skew", options.skew, "exponent of the experts' popularity by rank: 0 even, 1 Zipf's");
  app.add_option("--repeats", options.repeats, "timed passes")->check(CLI::PositiveNumber);
  app.add_flag("--json", options.json, "one line a measurement");
  CLI11_PARSE(app, argc, argv);
  if (options.layout == "plain" && options.dtype != "f32") {
    fmt::print(stderr, "--layout plain is measured in f32 only: add --dtype f32.\n");
    return 1;
  }
  Kokkos::InitializationSettings settings;
  if (options.threads > 0) settings.set_num_threads(options.threads);
  Kokkos::ScopeGuard kokkos(settings);
  try {
    if (hidden->count() > 0) options.name = "own";
    if (own.groups > 1) {
      own.router = "deepseek-v3";
      own.kept_groups = std::max<Index>(own.groups / 2, 1);
    }
    text::Stages::watch();
    run(hidden->count() > 0 ? own : shapes.at(options.name), options);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
