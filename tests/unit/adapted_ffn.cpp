// AdaptedFFN and layers of several adapted maps: MixLoRA's equations written out, gradients, padding, empty batches,
// inside a TransformerBlock, attention with a cache.
#include <moe/models/adapters.hpp>

#include "moe_test/adapters.hpp"
#include "moe_test/layer_gradients.hpp"

namespace adapted_ffn_test {

using namespace moe_test;

template <class Space, class Activation, class... Policies>
using FFN = moe::AdaptedFFN<Activation, moe::On<Space>, moe::Precision<double>, Policies...>;
using Top2 = moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum>;

const moe::AdaptedFFNConfig config{.hidden = 6, .intermediate = 9, .experts = 4, .rank = 3, .alpha = 5};

template <class T, class Space>
moe::FrozenFFN<T, Space> frozen_ffn(Index hidden, Index inner, bool gated = true) {
  return {random<moe::Tensor3<T, Space>>(93, 1, (gated ? 2 : 1) * inner, hidden),
          random<moe::Tensor3<T, Space>>(94, 1, hidden, inner)};
}
template <class Layer>
Layer layer_of(Index seed = 31) {
  Layer layer(config, frozen_ffn<double, typename Layer::Space>(6, 9, Layer::gated), moe::Seed{3});
  randomise_parameters(layer, unsigned(seed));
  return layer;
}

TEMPLATE_LIST_TEST_CASE("AdaptedFFN passes the gradient check", "", Spaces) {
  auto plain = layer_of<FFN<TestType, moe::ReLU>>();
  check_adapted(plain, 6, 6);
  auto mix = layer_of<FFN<TestType, moe::SwiGLU, Top2, moe::RouterZLoss>>();
  check_adapted(mix, 6, 6);
  auto shared = layer_of<FFN<TestType, moe::SwiGLU, Top2, moe::LowRankAdapters<moe::SharedDown>>>();
  check_adapted(shared, 6, 6);
}

using Space = Kokkos::DefaultExecutionSpace;
using M = moe::Matrix<double, Space>;

TEST_CASE("AdaptedFFN passes the gradient check with dropout, capacities and an input of the router's own") {
  using Mix = FFN<Space, moe::SwiGLU, Top2>;
  Mix dropout(config, frozen_ffn<double, Space>(6, 9), moe::LowRankAdapters<>{.dropout = 0.3}, moe::Seed{3});
  randomise_parameters(dropout);
  check_adapted(dropout, 6, 6, true);
  moe::CapacityPolicy<moe::Drop> drop;
  moe::CapacityPolicy<moe::Pad> pad;
  drop.factor = pad.factor = 0.75;
  FFN<Space, moe::SwiGLU, Top2, moe::CapacityPolicy<moe::Drop>> drops(config, frozen_ffn<double, Space>(6, 9), drop);
  randomise_parameters(drops);
  check_adapted(drops, 6, 6);
  FFN<Space, moe::SwiGLU, Top2, moe::CapacityPolicy<moe::Pad>> pads(config, frozen_ffn<double, Space>(6, 9), pad);
  randomise_parameters(pads);
  check_adapted(pads, 6, 6);
  auto given = config;
  given.router_hidden = 3;
  Mix own_input(given, frozen_ffn<double, Space>(6, 9), moe::Seed{3});
  randomise_parameters(own_input);
  check_adapted(own_input, 6, 6, false, true);
}

TEST_CASE("MixLoRA is what its equations say") {
  moe::MixLoRALayer<moe::Precision<double>> layer(config, frozen_ffn<double, Space>(6, 9), moe::Seed{3});
  randomise_parameters(layer);
  moe::Context<Space> ctx;
  decltype(layer)::Tape tape;
  const Index tokens = 11, hidden = 6, inner = 9;
  const auto x = random<M>(1, tokens, hidden);
  const auto batch = adapter_batch<double, Space>(x);
  const auto& p = layer.parameters;
  const Table rows(x), up(layer.base.up), down(layer.base.down), router(p.router.weight);
  const double scaling = 5.0 / 3;
  Table expected(tokens, hidden);
  for (Index t = 0; t < tokens; ++t) {
    if (t == 1 || t == 2) continue;  // padding
    const auto from = row_of(rows, t);
    const auto weight = softmax(times(router.data.data(), 4, from));
    std::vector<std::size_t> order{0, 1, 2, 3};
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return weight[a] > weight[b]; });
    for (int k = 0; k < 2; ++k) {
      const std::size_t e = order[std::size_t(k)];
      auto gate = times(up.data.data(), inner, from), other = times(up.data.data() + inner * hidden, inner, from);
      add(gate, scaling, low_rank(p.gate, Index(e), from));
      add(other, scaling, low_rank(p.up, Index(e), from));
      std::vector<double> h(std::size_t(inner), 0.0);
      for (std::size_t i = 0; i < h.size(); ++i) h[i] = gate[i] / (1 + std::exp(-gate[i])) * other[i];
      auto y = times(down.data.data(), hidden, h);
      add(y, scaling, low_rank(p.down, Index(e), h));
      for (Index i = 0; i < hidden; ++i)
        expected(t, i) += weight[e] / (weight[order[0]] + weight[order[1]]) * y[std::size_t(i)];
    }
  }
  CHECK(worst_difference(layer.forward(ctx, batch, tape), expected) < 1e-11);

  decltype(layer)::Tape empty;
  auto gradients = layer.gradients();
  CHECK(layer.forward(ctx, M("x", 0, 6), empty).extent(0) == 0);
  CHECK(layer.backward(ctx, M("dy", 0, 6), empty, gradients).extent(0) == 0);
}

TEST_CASE("Fresh adapters leave a feed-forward network as it is, also in a TransformerBlock") {
  using Block = moe::TransformerBlock<moe::SelfAttention<>, moe::MixLoRA>;
  static_assert(moe::LayerBlock<moe::MixLoRA> && moe::LayerBlock<moe::ProjectionAdaptedFFN<moe::SwiGLU>> &&
                moe::CachedBlock<moe::MixLoRAAttention>);
  moe::MoELayer<moe::Router<moe::Softmax, moe::TopK<1>, moe::ConstantWeight>> dense(
      {.hidden = 8, .intermediate = 12, .experts = 1}, moe::Seed{1});
  Block block({.attention = {.hidden = 8, .heads = 2}, .feed_forward = {.hidden = 8, .intermediate = 12, .experts = 4}},
              moe::Seed{2});
  block.feed_forward().base = {dense.parameters.experts.up, dense.parameters.experts.down};
  const auto x = random<moe::Matrix<float, Space>>(1, 20, 8);
  moe::Context<Space> ctx;
  const auto expected = clone(dense.forward(ctx, x));
  moe::MixLoRA::Tape tape;
  CHECK(worst_difference(block.feed_forward().forward(ctx, x, tape), Table(expected)) < 1e-6);
  moe::ProjectionAdaptedFFN<moe::SwiGLU> projections({.hidden = 8, .intermediate = 12}, block.feed_forward().base);
  moe::Batch<float, Space> batch;
  batch.x = x;
  CHECK(worst_difference(projections.forward(ctx, batch), Table(expected)) < 1e-6);
  Block::Tape block_tape;
  auto gradients = block.gradients();
  const auto y = block.forward(ctx, batch, block_tape);
  block.backward(ctx, y, block_tape, gradients);
  const auto b = host(gradients.feed_forward.down.b);
  CHECK(std::any_of(b.data(), b.data() + b.size(), [](float v) { return v != 0; }));
}

TEST_CASE("Layers of several adapted maps pass the gradient check") {
  moe::ProjectionAdaptedFFN<moe::SwiGLU, moe::Precision<double>, Top2, moe::RouterZLoss> ffn(
      config, frozen_ffn<double, Space>(6, 9), moe::Seed{3});
  randomise_parameters(ffn);
  check_adapted(ffn, 6, 6);
  auto given = config;
  given.router_hidden = 3;
  moe::ProjectionAdaptedFFN<moe::ReLU, moe::Precision<double>, Top2> plain(
      given, frozen_ffn<double, Space>(6, 9, false), moe::Seed{3});
  randomise_parameters(plain);
  check_adapted(plain, 6, 6, false, true);
  moe::AdaptedSelfAttention<moe::Precision<double>, Top2> attention(
      {.hidden = 6, .heads = 2, .key_heads = 1, .head_width = 4, .experts = 3, .rank = 2, .alpha = 0.5, .router_hidden = 3},
      moe::FrozenAttention<double, Space>{random<M>(5, 16, 6), random<M>(6, 6, 8)}, moe::Seed{4});
  randomise_parameters(attention);
  check_adapted(attention, 6, 6, false, true);
}

TEST_CASE("Adapted attention starts as what it adapts, and answers from a cache") {
  moe::SelfAttention<moe::Precision<double>> dense({.hidden = 8, .heads = 2}, moe::Seed{1});
  moe::MixLoRAAttentionLayer<moe::Precision<double>> adapted(
      {.hidden = 8, .heads = 2}, moe::FrozenAttention<double, Space>{dense.parameters.qkv, dense.parameters.output});
  const auto x = random<M>(1, 12, 8);
  moe::Context<Space> ctx;
  moe::Batch<double, Space> batch;
  batch.x = x;
  CHECK(worst_difference(adapted.forward(ctx, batch), Table(dense.forward(ctx, batch))) < 1e-13);
  randomise_parameters(adapted);
  const auto whole = clone(adapted.forward(ctx, batch));
  auto cache = adapted.cache(1, 12);
  for (Index t = 0; t < 12; t += 4) {
    batch.x = moe::Matrix<const double, Space>(x.data() + t * 8, 4, 8);
    const Table rows(M(whole.data() + t * 8, 4, 8));
    CHECK(worst_difference(adapted.forward(ctx, batch, cache), rows) < 1e-12);
  }
}

}  // namespace adapted_ffn_test
