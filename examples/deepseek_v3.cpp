// DeepSeek-V3's balancing at laptop size: the bias on the choice evens out the loads without a strong loss.
#include <iomanip>
#include <iostream>
#include <moe/moe.hpp>

int main(int argc, char** argv) {
  Kokkos::ScopeGuard kokkos(argc, argv);
  using Block = moe::DeepSeekV3;
  moe::DeepSeekV3Router router{moe::Scale{2.5}, moe::BiasBalancer{0.01}};
  Block block(Block::Config{.hidden = 64, .intermediate = 32, .experts = 64}, router, moe::Seed{42});

  const moe::Index tokens = 1024;
  moe::Matrix<float> x("x", tokens, 64);
  moe::Context ctx;
  Block::Tape tapes[2];  // two microbatches a step
  moe::LoadStatistics stats;
  std::cout << "step   maximum violation   entropy\n" << std::fixed << std::setprecision(3);
  for (; ctx.step <= 60; ++ctx.step) {
    stats.reset();
    for (int micro = 0; micro < 2; ++micro) {
      moe::fill_normal(ctx.space, x, moe::Seed{2 * ctx.step + micro});
      // A direction that all tokens share makes some experts everybody's first choice.
      Kokkos::deep_copy(Kokkos::subview(x, Kokkos::ALL, Kokkos::pair<int, int>(0, 8)), 1.0f);
      block.forward(ctx, x, tapes[micro]);
      stats.add(tapes[micro]);
    }
    block.update_balance(stats);  // once a step, with the counts of both
    if (ctx.step % 10 == 0) {
      const moe::LoadReport report = moe::load_report(tapes[0]);
      std::cout << std::setw(4) << ctx.step << std::setw(20) << report.maximum_violation() << std::setw(10)
                << report.entropy() << '\n';
    }
  }
}
