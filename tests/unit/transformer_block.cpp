// A block of attention and experts: its gradients, and its cache.
#include <moe/moe.hpp>

#include "moe_test/layer_gradients.hpp"

namespace transformer_block_test {

using namespace moe_test;

template <class Space, class T>
using BlockOf = moe::TransformerBlock<moe::SelfAttention<moe::On<Space>, moe::Precision<T>>,
                                      moe::MixtralLayer<moe::On<Space>, moe::Precision<T>, moe::RouterZLoss>>;

template <class Block>
typename Block::Config config(Index hidden) {
  return {.attention = {.hidden = hidden, .heads = 2, .head_width = 4},
          .feed_forward = {.hidden = hidden, .intermediate = 5, .experts = 4}};
}

TEMPLATE_LIST_TEST_CASE("Transformer blocks pass the gradient check", "", Spaces) {
  using Block = BlockOf<TestType, double>;
  Block block(config<Block>(7), moe::Seed{3});
  randomise(block.parameters.attention_norm, 1);
  randomise(block.parameters.feed_forward_norm, 2);
  check_layer(block);
}

TEMPLATE_LIST_TEST_CASE("Transformer blocks give with a cache what they give at once", "", Spaces) {
  using Block = BlockOf<TestType, float>;
  using M = moe::Matrix<float, TestType>;
  Block block(config<Block>(8), moe::Seed{4});
  moe::Context<TestType> ctx;
  ctx.training = false;
  moe::Batch<float, TestType> batch;
  const M x = random<M>(1, 12, 8);
  batch.x = x;
  const auto at_once = host(clone(block.forward(ctx, batch)));
  auto cache = block.cache(1, 12);
  double worst = 0;
  for (Index t = 0; t < 12; ++t) {
    batch.x = moe::Matrix<const float, TestType>(x.data() + t * 8, 1, 8);
    const auto y = host(clone(block.forward(ctx, batch, cache)));
    for (Index h = 0; h < 8; ++h) worst = std::max(worst, std::abs(double(y(0, h)) - double(at_once(t, h))));
  }
  CHECK(worst < 1e-5);
}

TEMPLATE_LIST_TEST_CASE("Empty gradients freeze attention and norms, and change no others", "", Spaces) {
  using Block = BlockOf<TestType, float>;
  using M = moe::Matrix<float, TestType>;
  Block block(config<Block>(8), moe::Seed{6});
  moe::Context<TestType> ctx;
  moe::Batch<float, TestType> batch;
  batch.x = random<M>(1, 12, 8);
  const M dy = random<M>(2, 12, 8);
  typename Block::Tape tape;
  auto all = block.gradients(), some = block.gradients();
  some.of_attention.qkv = some.of_attention.output = {};
  some.attention_norm = some.feed_forward_norm = {};
  block.forward(ctx, batch, tape);
  const auto dx = host(clone(block.backward(ctx, dy, tape, all)));
  const auto dx_frozen = host(clone(block.backward(ctx, dy, tape, some)));
  for (std::size_t i = 0; i < dx.size(); ++i) REQUIRE(dx_frozen.data()[i] == dx.data()[i]);
  auto compare = [](std::string_view, const auto& one, const auto& other) {
    const auto a = host(one), b = host(other);
    for (std::size_t i = 0; i < a.size(); ++i) REQUIRE(b.data()[i] == a.data()[i]);
  };
  Block::FeedForward::Parameters::visit(compare, all.of_feed_forward, some.of_feed_forward);
}

TEMPLATE_LIST_TEST_CASE("Stacks with mixtures of depths generate what they give at once", "", Spaces) {
  using Block = BlockOf<TestType, float>;
  using Depths = moe::MixtureOfDepths<Block, moe::ChoiceCrossEntropy, moe::DepthPredictor>;
  using Stack = moe::Sequential<moe::Residual<Block>, moe::Sequential<Depths, moe::Residual<Block>>>;
  using M = moe::Matrix<float, TestType>;
  const auto block = config<Block>(8);
  Stack stack({.first = block, .second = {.first = {.block = block, .capacity = 0.25}, .second = block}}, moe::Seed{5});
  stack.second().first().inference = GENERATE(moe::DepthChoice::router, moe::DepthChoice::predictor);
  moe::Context<TestType> ctx;
  ctx.training = false;
  typename Stack::Tape tape;
  moe::Batch<float, TestType> batch;
  const Index length = 20;
  const M x = random<M>(1, 2 * length, 8);  // two sequences
  batch.x = x;
  batch.sequence_offsets = indices<TestType>({0, length, 2 * length});
  const auto at_once = host(clone(stack.forward(ctx, batch, tape)));
  const auto chosen = host(tape.second.first.chosen);
  Index count = 0;
  for (std::size_t t = 0; t < chosen.size(); ++t) count += chosen(t);
  CHECK((count > 4 && count < 2 * length - 4));  // some of them, by a rule that has no number to keep
  auto cache = stack.cache(2, length);
  const M step("step", 2, 8);
  batch.x = step;
  batch.sequence_offsets = indices<TestType>({0, 1, 2});
  double worst = 0;
  for (Index t = 0; t < length; ++t) {
    for (Index s = 0; s < 2; ++s)
      Kokkos::deep_copy(Kokkos::subview(step, s, Kokkos::ALL), Kokkos::subview(x, s * length + t, Kokkos::ALL));
    const auto y = host(clone(stack.forward(ctx, batch, cache)));
    for (Index s = 0; s < 2; ++s) {
      for (Index h = 0; h < 8; ++h)
        worst = std::max(worst, std::abs(double(y(s, h)) - double(at_once(s * length + t, h))));
    }
  }
  CHECK(worst < 1e-5);
  // The cache of a mixture of depths holds the tokens that went through its block, and no others.
  const auto kept = host(cache.second.first.block.length);
  CHECK(kept(0) + kept(1) == count);
  CHECK(host(cache.first.block.length)(0) == length);
}

TEMPLATE_LIST_TEST_CASE("Mixtures of depths around attention pass the gradient check", "", Spaces) {
  using Block = BlockOf<TestType, double>;
  using Depths = moe::MixtureOfDepths<Block, moe::ChoiceCrossEntropy>;
  using Stack = moe::Sequential<Depths, moe::Residual<Block>>;
  const auto block = config<Block>(7);
  Stack stack({.first = {.block = block, .capacity = 0.5}, .second = block}, moe::Seed{6});
  check_layer(stack);
}

TEST_CASE("A block says which of its layers do not fit") {
  using Catch::Matchers::Contains;
  using Block = BlockOf<Kokkos::DefaultExecutionSpace, float>;
  auto sizes = config<Block>(8);
  sizes.feed_forward.hidden = 6;
  CHECK_THROWS_WITH(Block(sizes), Contains("attention of hidden 8 with a feed-forward layer of hidden 6"));
  Block block(config<Block>(8));
  std::vector<std::string> names;
  block.visit([&](const moe::ParameterInfo& info, const auto&) { names.push_back(info.name); });
  CHECK(names == std::vector<std::string>{"attention_norm", "attention.qkv_proj", "attention.o_proj",
                                          "feed_forward_norm", "feed_forward.router.weight",
                                          "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"});
}

}  // namespace transformer_block_test
