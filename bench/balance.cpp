// bench_balance: what BalanceStatistics adds to a training step of one layer: forward, backward and AdamW.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <moe/moe.hpp>

#include "limits.hpp"

namespace {

using moe::Index;

struct Options {
  Index tokens = 2048, hidden = 256, intermediate = 128, experts = 16;
  int k = 2, rounds = 15;
  Index pairs_of = 1;
};

double median(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void measure(const Options& options) {
  using Layer = moe::MoELayer<moe::Router<moe::Softmax, moe::TopK<>, moe::NormalizeSum>>;
  Layer layer(
      moe::MoEConfig{.hidden = options.hidden, .intermediate = options.intermediate, .experts = options.experts},
      Layer::Router{moe::TopK<>{options.k}}, moe::Seed{1});
  moe::Context ctx;
  moe::Matrix<float> x("x", options.tokens, options.hidden), dy("dy", options.tokens, options.hidden);
  moe::fill_normal(ctx.space, x, moe::Seed{2});
  moe::fill_normal(ctx.space, dy, moe::Seed{3});
  Layer::Tape tape;
  auto gradients = layer.gradients();
  moe::AdamW<Layer::Parameters> optimizer(layer.parameters);
  moe::LoadStatistics<> loads(options.experts);
  moe::BalanceStatistics<> statistics(options.experts, {.pairs_of = options.pairs_of});
  // Each part is timed in turn, so that what else the machine does meets all of them.
  std::vector<double> step, counted, full;
  for (int round = -2; round < options.rounds; ++round) {
    const double start = bench::now();
    moe::zero(ctx, gradients);
    layer.forward(ctx, x, tape);
    layer.backward(ctx, dy, tape, gradients);
    optimizer.step(ctx, layer.parameters, gradients, 1e-4);
    ctx.space.fence();
    const double stepped = bench::now();
    loads.reset();
    loads.add(tape);
    ctx.space.fence();
    const double added = bench::now();
    statistics.add(tape);
    statistics.end_step();
    ctx.space.fence();
    const double done = bench::now();
    if (round < 0) continue;
    step.push_back(stepped - start), counted.push_back(added - stepped), full.push_back(done - added);
  }
  fmt::print("{:>7}{:>7}{:>6}{:>5}{:>3}{:>12.0f}{:>10.1f}{:>12.1f}{:>8.2f}%\n", options.tokens, options.hidden,
             options.intermediate, options.experts, options.k, 1e6 * median(step), 1e6 * median(counted),
             1e6 * median(full), 100 * median(full) / median(step));
}

}  // namespace

int main(int argc, char** argv) {
  Kokkos::ScopeGuard kokkos(argc, argv);
  Options options;
  CLI::App app("Times BalanceStatistics beside a training step of one layer");
  app.add_option("--rounds", options.rounds, "Steps that are timed");
  app.add_option("--pairs-of", options.pairs_of, "Pairs of experts are counted for every so-many-th token; 0: never");
  CLI11_PARSE(app, argc, argv);
  fmt::print(
      "Median microseconds: a training step, LoadStatistics, and BalanceStatistics with its share of the step\n"
      " tokens hidden inter exps  k        step    counts  statistics\n");
  for (const auto& [hidden, intermediate, experts, k] : std::vector<std::tuple<Index, Index, Index, int>>{
           {128, 256, 8, 2}, {256, 128, 16, 2}, {512, 256, 64, 4}, {512, 256, 64, 8}, {1024, 256, 128, 8}}) {
    options.hidden = hidden, options.intermediate = intermediate, options.experts = experts, options.k = k;
    measure(options);
  }
}
