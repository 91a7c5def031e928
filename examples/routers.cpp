// Eight ways to choose experts, on the same random tokens: sixty steps forward and backward, no training but for the
// balancing biases.
//
// What to look at:
// - experts a token, first and last step: only the threshold's count changes, from about half of 16 to about 2;
// - maximum violation, the busiest expert's load over the mean less one: 0 where loads are equal by construction (BASE,
//   expert choice) and nearly so for the hash that knows how frequent ids are, but not for the one that does not.
//   Inkling's two shared experts have every token, which is what it shows there;
// - loss: Shazeer's two are near 0 as long as noise alone chooses; the others here have none.
#include <iomanip>
#include <iostream>
#include <moe/models/classical.hpp>
#include <moe/models/dynamic.hpp>
#include <moe/models/llama.hpp>
#include <moe/models/sigmoid_llms.hpp>
#include <moe/moe.hpp>
#include <vector>

constexpr moe::Index tokens = 1024, vocabulary = 1000, experts = 16;
constexpr moe::MoEConfig config{.hidden = 64, .intermediate = 32, .experts = experts};

template <class Layer>
void show(const char* name, Layer& layer, const moe::Batch<float>& batch) {
  moe::Context ctx;
  typename Layer::Tape tape;
  auto gradients = layer.gradients();
  double first = 0, last = 0;
  for (; ctx.step < 60; ++ctx.step) {
    auto y = layer.forward(ctx, batch, tape);
    moe::zero(ctx, gradients);
    layer.backward(ctx, y, tape, gradients);
    moe::LoadStatistics stats;
    stats.add(tape);
    layer.update_balance(stats);  // a layer without a balancer stays as it is
    last = double(moe::load_report(tape).assignments()) / double(tokens);
    if (ctx.step == 0) first = last;
  }
  std::cout << std::left << std::setw(28) << name << std::right << std::fixed << std::setprecision(2) << std::setw(7)
            << first << std::setw(7) << last << std::setw(11) << moe::load_report(tape).maximum_violation()
            << std::setprecision(4) << std::setw(9) << tape.loss() << '\n';
}

int main(int argc, char** argv) {
  Kokkos::ScopeGuard kokkos(argc, argv);
  moe::Matrix<float> x("x", tokens, config.hidden);
  moe::fill_normal(Kokkos::DefaultExecutionSpace{}, x, moe::Seed{1});
  moe::Vector<std::int32_t> ids("ids", tokens);
  auto host_ids = Kokkos::create_mirror_view(ids);
  std::vector<double> frequencies(vocabulary);
  for (moe::Index t = 0; t < tokens; ++t) {
    const double u = moe::random_uniform<double>({.seed = 2}, std::uint64_t(t), 0);
    host_ids(t) = std::int32_t(vocabulary * u * u);  // few ids are frequent, as words are
    frequencies[host_ids(t)] += 1;
  }
  Kokkos::deep_copy(ids, host_ids);
  moe::Batch<float> batch;
  batch.x = x;
  batch.token_ids = ids;

  std::cout << "                            experts a token    maximum\n"
               "                              first   last  violation     loss\n";
  moe::NoisyTopK noisy(config, moe::Seed{3});
  moe::start_router_at_zero(noisy);
  show("Shazeer, noisy top 4", noisy, batch);

  moe::MeanCount mean_count(config, moe::mean_count_router(2, experts, 1e-2), moe::Seed{3});
  show("threshold, 2 on average", mean_count, batch);

  moe::HashMixture hash(config, moe::hash_router(vocabulary), moe::Seed{3});
  show("hash of the token id", hash, batch);
  moe::assign_table(hash.buffers.router.table, moe::balanced_hash(frequencies, experts));
  show("hash by frequency", hash, batch);

  moe::BASEMixture base(config, moe::Seed{3});
  show("BASE", base, batch);

  moe::ExpertChoiceMixture choice(config, moe::Seed{3});
  show("expert choice", choice, batch);

  moe::Llama4 llama(config, moe::Seed{3});
  show("Llama 4", llama, batch);

  auto with_shared = config;
  with_shared.experts += 2;
  moe::Inkling inkling(with_shared, moe::InklingRouter{moe::Scale{8.0}}, moe::Seed{3});
  show("Inkling, 6 and 2 shared", inkling, batch);
}
