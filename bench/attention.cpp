// bench_attention: a mixture of depths over its capacity beside the dense block, and mixtures of attention heads.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <moe/moe.hpp>
#include <nlohmann/json.hpp>

#include "limits.hpp"

namespace {

using moe::Index;
using Space = Kokkos::DefaultHostExecutionSpace;
using Matrix = moe::Matrix<float, Space>;
using On = moe::On<Space>;

struct Options {
  std::string what = "depths";
  Index hidden = 1024, key_heads = 8, head_width = 64, experts = 8;
  std::vector<Index> tokens{512, 2048};
  Index sequence = 2048, batch = 1;
  std::vector<double> capacities{0.05, 0.125, 0.25, 0.5, 0.75, 1};
  double seconds = 3;
  int threads = 0;
  bool json = false;
};

/// A layer on one batch of equal sequences: forward alone, and a step of forward and backward.
template <class Layer>
struct Timed {
  Layer layer;
  moe::Context<Space> ctx;
  typename Layer::Tape tape;
  typename Layer::Gradients gradients;
  Matrix x, dy;
  moe::Batch<float, Space> batch;

  Timed(Layer made, Index sequences, Index length)
      : layer(std::move(made)),
        gradients(layer.gradients()),
        x("x", sequences * length, layer.config().hidden),
        dy("dy", sequences * length, layer.config().hidden) {
    moe::fill_normal(Space{}, x, moe::Seed{1});
    moe::fill_normal(Space{}, dy, moe::Seed{2});
    moe::Vector<Index, Space> offsets("offsets", sequences + 1);
    for (Index s = 0; s <= sequences; ++s) offsets(s) = s * length;
    batch.x = x;
    batch.sequence_offsets = offsets;
  }
  void forward() { layer.forward(ctx, batch, tape); }
  void train() {
    layer.forward(ctx, batch, tape);
    layer.backward(ctx, moe::Matrix<const float, Space>(dy), tape, gradients);
  }
};

void print(const Options& options, nlohmann::json line, const std::string& text) {
  if (options.json) {
    line["impl"] = "moe";
    line["threads"] = Space().concurrency();
    fmt::print("{}\n", line.dump());
  } else {
    fmt::print("{}\n", text);
  }
  std::fflush(stdout);
}

using Dense = moe::MoELayer<On, moe::Router<moe::Softmax, moe::TopK<1>>, moe::ExpertFFN<moe::SwiGLU>>;
using Block = moe::TransformerBlock<moe::SelfAttention<On>, Dense>;

Block block(const Options& options) {
  moe::detail::require<moe::ConfigError>(options.hidden % options.head_width == 0, "bench_attention: --hidden ",
                                         options.hidden, " does not divide into heads of --head-width ",
                                         options.head_width, ".");
  return Block({.attention = {.hidden = options.hidden,
                              .heads = options.hidden / options.head_width,
                              .head_width = options.head_width},
                .feed_forward = {.hidden = options.hidden, .intermediate = 8 * options.hidden / 3, .experts = 1}},
               moe::Seed{1});
}

/// The step of a mixture of depths against its share of the dense block's: c of all that is done for each token, and
/// c^2 of attention's scores.
void depths(const Options& options) {
  Timed<moe::Residual<Block>> dense(moe::Residual<Block>(block(options).config(), moe::Seed{1}), options.batch,
                                    options.sequence);
  const double forward = bench::least(options.seconds, [&] { dense.forward(); }),
               train = bench::least(options.seconds, [&] { dense.train(); });
  print(options,
        {{"what", "dense"}, {"T", options.sequence * options.batch}, {"forward_s", forward}, {"train_s", train}},
        fmt::format("dense     {:>9.2f} {:>9.2f}", 1e3 * forward, 1e3 * train));
  for (const double capacity : options.capacities) {
    using Depths = moe::MixtureOfDepths<Block, moe::ChoiceCrossEntropy>;
    typename Depths::Config config{.capacity = capacity};
    Timed<Depths> depths(Depths(config, block(options), moe::Seed{1}), options.batch, options.sequence);
    const double one = bench::least(options.seconds, [&] { depths.forward(); }),
                 step = bench::least(options.seconds, [&] { depths.train(); });
    print(options,
          {{"what", "mixture of depths"},
           {"T", options.sequence * options.batch},
           {"capacity", capacity},
           {"forward_s", one},
           {"train_s", step},
           {"forward_over_proportional", one / (capacity * forward)},
           {"train_over_proportional", step / (capacity * train)}},
          fmt::format("{:>7.1f}%  {:>9.2f} {:>9.2f} {:>10.2f} {:>10.2f}", 100 * capacity, 1e3 * one, 1e3 * step,
                      one / (capacity * forward), step / (capacity * train)));
  }
}

template <class Layer>
void attention(const Options& options, const char* name, Index tokens, Layer layer) {
  Timed<Layer> timed(std::move(layer), 1, tokens);
  const double forward = bench::least(options.seconds, [&] { timed.forward(); }),
               train = bench::least(options.seconds, [&] { timed.train(); });
  print(options, {{"what", name}, {"T", tokens}, {"forward_s", forward}, {"train_s", train}},
        fmt::format("{:>6}  {:<28} {:>9.2f} {:>9.2f}", tokens, name, 1e3 * forward, 1e3 * train));
}

void mixtures(const Options& options) {
  const Index width = options.head_width, keys = options.key_heads;
  for (const Index tokens : options.tokens) {
    attention(options, "dense", tokens,
              moe::SelfAttention<On>(
                  {.hidden = options.hidden, .heads = 2 * keys, .key_heads = keys, .head_width = width}, moe::Seed{1}));
    attention(options, "JetMoE's mixture of heads", tokens,
              moe::MixtureOfAttentionHeads<On, moe::OutputBias>(
                  {.hidden = options.hidden, .experts = options.experts, .key_heads = keys, .head_width = width},
                  moe::Seed{1}));
    attention(options, "SwitchHead", tokens,
              moe::SwitchHead<2, On>(
                  {.hidden = options.hidden, .heads = keys / 2, .experts = options.experts, .head_width = width},
                  moe::Seed{1}));
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{
      "Times a mixture of depths around a transformer block over its capacity, or mixtures of attention heads, forward "
      "and with backward, in f32."};
  app.option_defaults()->always_capture_default();
  app.add_option("--what", options.what, "what to time")->check(CLI::IsMember({"depths", "heads"}));
  app.add_option("--hidden", options.hidden, "width of tokens")->check(CLI::PositiveNumber);
  app.add_option("--key-heads", options.key_heads, "heads of keys; SwitchHead has half as many")
      ->check(CLI::Range(2, 1024));
  app.add_option("--head-width", options.head_width, "of one head")->check(CLI::PositiveNumber);
  app.add_option("--experts", options.experts, "of the mixtures of heads")->check(CLI::Range(2, 65536));
  app.add_option("--tokens", options.tokens, "heads: lengths of the one sequence")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  app.add_option("--sequence", options.sequence, "depths: tokens of a sequence")->check(CLI::PositiveNumber);
  app.add_option("--batch", options.batch, "depths: sequences")->check(CLI::PositiveNumber);
  app.add_option("--capacities", options.capacities, "depths: parts of a sequence that go through the block")
      ->delimiter(',')
      ->check(CLI::Range(0.001, 1.0));
  app.add_option("--seconds", options.seconds, "time for each measurement")->check(CLI::NonNegativeNumber);
  app.add_option("--threads", options.threads, "0: as many as Kokkos takes")->check(CLI::NonNegativeNumber);
  app.add_flag("--json", options.json, "one line a measurement");
  CLI11_PARSE(app, argc, argv);
  Kokkos::InitializationSettings settings;
  if (options.threads > 0) settings.set_num_threads(options.threads);
  Kokkos::ScopeGuard kokkos(settings);
  try {
    if (options.what == "depths") {
      if (!options.json) {
        fmt::print("{} sequences of {} tokens, hidden {}, {} threads\n", options.batch, options.sequence,
                   options.hidden, Space().concurrency());
        fmt::print("capacity  {:>9} {:>9} {:>21}\n", "forward", "train ms", "times its share");
      }
      depths(options);
    } else {
      if (!options.json) fmt::print("{:>6}  {:<28} {:>9} {:>9}\n", "tokens", "", "forward", "train ms");
      mixtures(options);
    }
  } catch (const moe::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
