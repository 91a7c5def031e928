// bench_layer: a whole layer on the host or on a device, its forward pass or its training, beside what the machine
// could do at best.
#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>

#include "layer_modes.hpp"

namespace {

using bench::Index;
using bench::Options;
using bench::Shape;
using bench::Space;

/// Times one layer at each number of tokens.
template <class Layer>
void infer(const Shape& shape, const Options& options, const Layer& layer) {
  for (Index tokens : options.tokens) {
    bench::print(options, options.mode == "decode" ? bench::decode(shape, options, layer, tokens)
                                                   : bench::forward(shape, options, layer, tokens));
  }
}
template <class Layer>
void train(const Shape& shape, const Options& options, const Layer& layer) {
  for (Index tokens : options.tokens) bench::print(options, bench::train(shape, options, layer, tokens));
}

void introduce(const Shape& shape, const Options& options) {
  const bench::Limits limits = bench::Limits::measure();
  fmt::print("{}: hidden {}, intermediate {}, {} experts, {} a token, {} shared; {}, {} {}; {}", options.name,
             shape.hidden, shape.intermediate, shape.experts, shape.top_k, shape.shared, options.mode, options.layout,
             options.dtype, bench::machine());
  if (!bench::on_device) fmt::print(", {} threads; {:.0f} GFLOP/s", Space().concurrency(), options.peak(limits));
  fmt::print("; {:.1f} GB/s\n", limits.gbs);
  bench::print_head(options);
}

/// A layer with random weights. Its router's first column, a bias by the tokens, makes popularity fall with the rank.
template <class Layer, class... Values>
std::unique_ptr<Layer> make_layer(const Shape& shape, const Options& options, const Values&... values) {
  const moe::MoEConfig config{.hidden = shape.hidden, .intermediate = shape.intermediate, .experts = shape.experts};
  auto layer = std::make_unique<Layer>(config, values..., moe::Seed{2});
  const auto weight = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, layer->parameters.router.weight);
  for (Index e = 0; e < shape.experts; ++e) weight(e, 0) = float(-options.skew * std::log(double(e + 1)));
  Kokkos::deep_copy(layer->parameters.router.weight, weight);
  return layer;
}

template <class Router, class Experts, class... More, class... Values>
void run(const Shape& shape, const Options& options, const Values&... values) {
  if (!options.json) introduce(shape, options);
  using Layer = moe::MoELayer<Router, Experts, moe::On<Space>, More...>;
  if (options.layout == "plain" && options.dtype == "bf16") {
    using Half = moe::MoELayer<Router, Experts, moe::On<Space>, More..., moe::Precision<moe::bfloat16, float>>;
    const auto layer = make_layer<Half>(shape, options, values...);
    return options.mode == "train" ? train(shape, options, *layer) : infer(shape, options, *layer);
  }
  auto layer = make_layer<Layer>(shape, options, values...);
  if (options.mode == "train") return train(shape, options, *layer);
  if (options.layout == "plain") return infer(shape, options, *layer);
  if constexpr (!bench::on_device) {
    bench::with_packed_type(options.dtype, [&](auto type) {
      const auto fast = moe::pack<decltype(type)>(*layer);
      layer.reset();
      infer(shape, options, fast);
    });
  }
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

/// What cannot be measured, as a sentence; null where all fits.
const char* misfit(const Options& options) {
  const bool plain = options.layout == "plain";
  if (options.mode == "train" && !plain) return "Packed layers do not train: leave --layout packed out.";
  if (options.mode == "train" && options.dtype != "f32" && options.dtype != "bf16")
    return "Layers train in f32 and bf16: choose one of them as --dtype.";
  if (bench::on_device && !plain) return "Packed layers are for hosts: leave --layout packed out.";
  if (plain && options.dtype == "int8") return "--layout plain is measured in f32 and bf16: choose one of them.";
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  Shape own{"deepseek-v2", 0, 0, 0, 2, 1, 1, 1};
  std::vector<std::string> dtypes;
  for (const auto& [name, type] : bench::dtypes) dtypes.push_back(name);
  CLI::App app{"Times a layer: router, dispatch, experts, combine and shared experts."};
  app.footer(
      "Arithmetic is 2 * matrices * hidden * intermediate * (experts a token + shared) * tokens, three times that in\n"
      "training; routing counts for nothing. GB/s is of the weights that a pass has to move at least: those of the\n"
      "experts touched, in decode also the router's, in training four times (read twice; gradients read and written).\n"
      "'of bound' is the larger of arithmetic over the multiply-add peak and bytes over the read bandwidth, both\n"
      "measured before and after, over the least time. In decode each pass has its own share of the larger of the two\n"
      "reads of 384 MiB before and after it, which also empty the caches; 'of reading' is their median, and rates are\n"
      "of the median time. Kept bytes are the arrays of the tape after a forward pass, its result included; the "
      "tokens\n"
      "themselves, which the caller holds, are not.");
  app.option_defaults()->always_capture_default();
  app.add_option("--mode", options.mode, "forward; decode: few tokens, weights from memory; train: and backward")
      ->check(CLI::IsMember({"forward", "decode", "train"}));
  auto* name = app.add_option("--shape", options.name, "sizes of a published model, divided")
                   ->check(CLI::IsMember(bench::shapes));
  auto* hidden = app.add_option("--hidden", own.hidden, "sizes of your own")->excludes(name);
  app.add_option("--intermediate", own.intermediate, "of one expert")->needs(hidden);
  app.add_option("--experts", own.experts, "number of experts")->needs(hidden);
  app.add_option("--top-k", own.top_k, "experts a token")->needs(hidden);
  app.add_option("--groups", own.groups, "of experts, of which a token uses half: DeepSeek-V3's router; 1: a softmax's")
      ->needs(hidden)
      ->check(CLI::PositiveNumber);
  app.add_option("--shared", own.shared, "shared experts")->needs(hidden)->check(CLI::NonNegativeNumber);
  app.add_option("--tokens", options.tokens, "numbers of tokens; default 512,2048, in decode 1,4,32, in training 2048")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->default_str("");
  app.add_option("--dtype", options.dtype, "type of weights and tokens")->check(CLI::IsMember(dtypes));
  app.add_option("--layout", options.layout, "packed: as moe::pack makes it; plain: as it is trained")
      ->check(CLI::IsMember({"packed", "plain"}))
      ->default_str("plain in training and on devices, else packed");
  app.add_option("--threads", options.threads, "of Kokkos' pool; 0: all there are")->check(CLI::NonNegativeNumber);
  app.add_option("--skew", options.skew, "exponent of the experts' popularity by rank: 0 even, 1 Zipf's");
  app.add_option("--repeats", options.repeats, "timed passes, in decode of each of its inputs")
      ->check(CLI::PositiveNumber);
  app.add_flag("--json", options.json, "one line a measurement");
  CLI11_PARSE(app, argc, argv);
  const bool training = options.mode == "train";
  if (options.tokens.empty()) {
    options.tokens = training                   ? std::vector<Index>{2048}
                     : options.mode == "decode" ? std::vector<Index>{1, 4, 32}
                                                : std::vector<Index>{512, 2048};
  }
  if (options.layout.empty()) options.layout = training || bench::on_device ? "plain" : "packed";
  if (const char* wrong = misfit(options)) {
    fmt::print(stderr, "{}\n", wrong);
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
    text::Stages::watch_bytes();
    if (!bench::on_device) text::Stages::watch_regions();
    run(hidden->count() > 0 ? own : bench::shapes.at(options.name), options);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
