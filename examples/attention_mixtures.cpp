// Three mixtures of attention heads beside dense attention. Each learns to recall: its target at a token is the input
// two tokens before, which only attention can bring. Then the last one answers token by token from its cache.
#include <cmath>
#include <iomanip>
#include <iostream>
#include <moe/models/attention.hpp>
#include <moe/moe.hpp>

using moe::Index;
constexpr Index tokens = 512, hidden = 32, length = 64;  // eight sequences

/// dy = y - x two tokens before, the gradient of half the squared distance; a sequence's first two tokens have no
/// target.
struct Residual {
  moe::Matrix<float> x, y, dy;
  KOKKOS_FUNCTION void operator()(Index i) const {
    const Index t = i / hidden, h = i % hidden;
    dy(t, h) = t % length < 2 ? 0.0f : (y(t, h) - x(t - 2, h)) / float(tokens);
  }
};

struct Squares {
  moe::Matrix<float> dy;
  KOKKOS_FUNCTION void operator()(Index i, double& sum) const { sum += double(dy.data()[i]) * double(dy.data()[i]); }
};

template <class Layer>
void train(const char* name, Layer& layer, const moe::Batch<float>& batch, const moe::Matrix<float>& x) {
  moe::Context ctx;
  typename Layer::Tape tape;
  auto gradients = layer.gradients();
  moe::AdamW optimizer(layer.parameters);
  moe::Matrix<float> dy("dy", tokens, hidden);
  double first = 0, last = 0;
  for (; ctx.step < 800; ++ctx.step) {
    const auto y = layer.forward(ctx, batch, tape);
    Kokkos::parallel_for(Kokkos::RangePolicy<>(ctx.space, 0, Index(x.size())), Residual{x, y, dy});
    Kokkos::parallel_reduce(Kokkos::RangePolicy<>(ctx.space, 0, Index(x.size())), Squares{dy}, last);
    if (ctx.step == 0) first = last;
    moe::zero(ctx, gradients);
    layer.backward(ctx, dy, tape, gradients);
    optimizer.step(ctx, layer.parameters, gradients, 3e-3);
  }
  std::cout << std::setw(12) << name << std::fixed << std::setprecision(3) << std::setw(20) << last / first
            << std::setw(14) << tape.loss() << '\n';
}

int main(int argc, char** argv) {
  Kokkos::ScopeGuard kokkos(argc, argv);
  moe::Matrix<float> x("x", tokens, hidden);
  moe::fill_normal(Kokkos::DefaultExecutionSpace{}, x, moe::Seed{1});
  moe::Vector<Index> offsets("offsets", tokens / length + 1);
  const auto copy = Kokkos::create_mirror_view(offsets);
  for (Index s = 0; s <= tokens / length; ++s) copy(s) = s * length;
  Kokkos::deep_copy(offsets, copy);
  moe::Batch<float> batch;
  batch.x = x;
  batch.sequence_offsets = offsets;

  moe::SelfAttention<> dense({.hidden = hidden, .heads = 4}, moe::Seed{2});
  moe::MoA moa({.hidden = hidden, .experts = 8, .head_width = 16}, moe::Seed{2});
  moe::JetMoEAttentionLayer<moe::SwitchBalanceLoss> jetmoe({.hidden = hidden, .experts = 4, .key_heads = 2},
                                                           moe::Seed{2});
  moe::SwitchHead<2, moe::EntropyLoss> switch_head({.hidden = hidden, .heads = 2, .experts = 4}, moe::Seed{2});
  std::cout << "   attention   error (of 1 at first)   loss of routing\n";
  train("dense", dense, batch, x);
  train("MoA", moa, batch, x);
  train("JetMoE", jetmoe, batch, x);
  train("SwitchHead", switch_head, batch, x);

  moe::Context ctx;
  ctx.training = false;
  auto cache = switch_head.cache(1, length);
  for (Index t = 0; t < 4; ++t) {
    moe::Batch<float> next;
    next.x = moe::Matrix<const float>(x.data() + t * hidden, 1, hidden);
    const auto y = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, switch_head.forward(ctx, next, cache));
    std::cout << "token " << t << ": y begins with " << y(0, 0) << ", x two before with "
              << (t < 2 ? 0.0f : Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, x)(t - 2, 0)) << '\n';
  }
}
