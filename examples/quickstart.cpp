// DeepSeek-V3's feed-forward block at laptop size: one training step, the load report, inference.
#include <iostream>
#include <moe/moe.hpp>

using Router = moe::Router<moe::Sigmoid, moe::TopK<4>, moe::GroupLimit<4, 2, moe::BestTwo>, moe::BiasBalancer,
                           moe::NormalizeSum, moe::Scale>;
using Block = moe::MoELayer<Router, moe::ExpertFFN<moe::SwiGLU>, moe::CapacityPolicy<moe::Dropless>,
                            moe::SharedExperts<1>, moe::SequenceBalanceLoss>;

int main(int argc, char** argv) {
  Kokkos::ScopeGuard kokkos(argc, argv);
  Block block(Block::Config{.hidden = 64, .intermediate = 32, .experts = 16}, Router{moe::Scale{2.5}}, moe::Seed{42});

  moe::Matrix<float> x("x", 256, 64);  // (T, H)
  moe::fill_normal(Kokkos::DefaultExecutionSpace{}, x, moe::Seed{1});

  moe::Context ctx;  // stream, workspace, step number
  Block::Tape tape;  // one a microbatch in flight, reusable
  moe::LoadStatistics stats;
  auto gradients = block.gradients();
  moe::AdamW optimizer(block.parameters);

  auto y = block.forward(ctx, x, tape);               // (T, H)
  auto dx = block.backward(ctx, y, tape, gradients);  // adds into gradients; the layer's losses included
  optimizer.step(ctx, block.parameters, gradients, 1e-3);
  stats.add(tape);              // counts over microbatches
  block.update_balance(stats);  // once a step, after the optimiser
  std::cout << moe::load_report(tape);
  auto z = block.forward(ctx, x);  // inference
  std::cout << "loss " << tape.loss() << ", output (" << z.extent(0) << ", " << z.extent(1) << "), dx (" << dx.extent(0)
            << ", " << dx.extent(1) << ")\n";
}
