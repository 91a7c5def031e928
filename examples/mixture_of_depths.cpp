// A mixture of depths around a mixture of experts: one token in four goes through it. The choice is learned over the
// sequence, and a predictor learns to make it causally: after training, token by token gives what the
// sequence at once gives by the predictor.
#include <iostream>
#include <moe/moe.hpp>

using Experts = moe::MoELayer<moe::Router<moe::Softmax, moe::TopK<2>>, moe::ExpertFFN<moe::SwiGLU>>;
using Layer = moe::MixtureOfDepths<Experts, moe::ChoiceCrossEntropy, moe::DepthPredictor>;
using Space = Layer::Space;

/// The sum of (y - x / 2)^2 / 2, and its gradient.
struct Halve {
  moe::Matrix<float> x, y, dy;
  KOKKOS_FUNCTION void operator()(moe::Index i, double& loss) const {
    const float error = y.data()[i] - x.data()[i] / 2;
    dy.data()[i] = error;
    loss += 0.5 * error * error;
  }
};

int main(int argc, char** argv) {
  Kokkos::ScopeGuard kokkos(argc, argv);
  const moe::Index sequences = 4, length = 64, hidden = 32;
  Layer layer({.block = {.hidden = hidden, .intermediate = 64, .experts = 4}, .capacity = 0.25},
              moe::DepthPredictor{.width = 16}, moe::Seed{42});

  moe::Matrix<float> x("x", sequences * length, hidden), dy("dy", sequences * length, hidden);  // (T, H)
  moe::fill_normal(Space{}, x, moe::Seed{1});
  moe::Vector<moe::Index> offsets("offsets", sequences + 1);
  auto host_offsets = Kokkos::create_mirror_view(offsets);
  for (moe::Index s = 0; s <= sequences; ++s) host_offsets(s) = s * length;
  Kokkos::deep_copy(offsets, host_offsets);
  moe::Batch<float> batch;
  batch.x = x;
  batch.sequence_offsets = offsets;

  moe::Context ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients();
  moe::AdamW optimizer(layer.parameters);
  moe::DepthStatistics statistics;
  for (int step = 0; step <= 300; ++step) {
    moe::zero(ctx, static_cast<Layer::Parameters&>(gradients));
    const auto y = layer.forward(ctx, batch, tape);
    double loss = 0;
    Kokkos::parallel_reduce("loss", Kokkos::RangePolicy<Space>(0, moe::Index(y.size())), Halve{x, y, dy}, loss);
    layer.backward(ctx, dy, tape, gradients);
    optimizer.step(ctx, layer.parameters, gradients, 3e-3);
    ++ctx.step;
    if (step % 100 != 0) continue;
    statistics.reset();
    statistics.add(tape);
    std::cout << "step " << step << ": error " << loss / double(x.size()) << "\n" << statistics.report();
  }

  // Generation: the predictor decides token by token. A block with a cache would keep the chosen ones there.
  ctx.training = false;
  const auto whole = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, layer.forward(ctx, batch));
  auto cache = layer.cache(1, length);
  double worst = 0;
  for (moe::Index t = 0; t < length; ++t) {  // of the first sequence
    const moe::Matrix<const float> next(x.data() + t * hidden, 1, hidden);
    const auto y = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, layer.forward(ctx, next, cache));
    for (moe::Index h = 0; h < hidden; ++h) worst = std::max(worst, std::abs(double(y(0, h)) - double(whole(t, h))));
  }
  std::cout << "inference by the predictor: token by token differs by at most " << worst << '\n';
}
