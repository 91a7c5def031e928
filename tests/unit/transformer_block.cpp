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
