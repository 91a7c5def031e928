// A layer balanced by a bias and by a loss on the loads of all microbatches, and what its statistics say.
//
// What to look at: the maximum violation, the busiest expert's load over the mean less one, falls over the steps; the
// history shows how, with a digit for each expert: 2 is the mean load, a dot none.
#include <iostream>
#include <moe/moe.hpp>

using Router = moe::Router<moe::Sigmoid, moe::TopK<2>, moe::BiasBalancer, moe::NormalizeSum>;
using Layer = moe::MoELayer<Router, moe::PooledBalanceLoss<>, moe::RouterZLoss>;
constexpr moe::Index tokens = 1024, hidden = 32, experts = 16, microbatches = 2;

int main(int argc, char** argv) {
  Kokkos::ScopeGuard kokkos(argc, argv);
  moe::BalanceStatistics<> statistics(experts, {.buckets = 16});
  const moe::BiasBalancer balancer{.rate = 1e-2, .rule = moe::BiasRule::normalized, .limit = 1};
  Layer layer({.hidden = hidden, .intermediate = 32, .experts = experts}, Router{balancer},
              moe::PooledBalanceLoss<>{1e-2, statistics.loads().counts()}, moe::RouterZLoss{1e-3}, moe::Seed{1});
  moe::Context ctx;
  // Four experts with large weights: at first they take nearly all.
  const auto loud = Kokkos::subview(layer.parameters.router.weight, Kokkos::pair<int, int>(0, 4), Kokkos::ALL);
  moe::fill_normal(ctx.space, loud, moe::Seed{2});
  Layer::Tape tape;
  auto gradients = layer.gradients();
  moe::SGD<Layer::Parameters> optimizer(layer.parameters);
  moe::Matrix<float> x("x", tokens, hidden);
  const auto all_ranks = [](const auto& /*space*/, const auto& /*values*/) {};  // of one rank: nothing to add

  for (; ctx.step < 100; ++ctx.step) {
    moe::zero(ctx, gradients);
    for (moe::Index m = 0; m < microbatches; ++m) {
      moe::fill_normal(ctx.space, x, moe::Seed{100 + ctx.step * microbatches + m});
      auto y = layer.forward(ctx, x, tape);
      statistics.add(tape);                                         // before backward: the loss reads these counts
      layer.backward(ctx, y, tape, gradients, 1.0 / microbatches);  // a training's dy; here any will do
    }
    statistics.loads().all_reduce(all_ranks);
    layer.update_balance(ctx, statistics.loads());
    statistics.end_step();
    optimizer.step(ctx, layer.parameters, gradients, 1e-4);
  }
  std::cout << statistics.report();
}
