// AdaptedFFN: MixLoRA's equations written out, gradients, padding and empty batches, inside a TransformerBlock.
#include <moe/adapters/adapted_ffn.hpp>

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

}  // namespace adapted_ffn_test
