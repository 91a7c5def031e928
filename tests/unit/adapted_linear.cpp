// AdaptedLinear: goldens of the LoRA family, sums written out, gradients, padding, empty batches, microbatches.
#include "moe_test/adapters.hpp"
#include "moe_test/golden.hpp"
#include "moe_test/layer_gradients.hpp"

namespace adapted_linear_test {

using namespace moe_test;

template <class Space, class... Policies>
using Linear = moe::AdaptedLinear<moe::On<Space>, moe::Precision<double>, Policies...>;

using Soft = moe::Router<moe::Softmax, moe::AllExperts>;
using Top2 = moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum>;
using Hydra = moe::LowRankAdapters<moe::SharedDown>;

const moe::AdaptedLinearConfig config{.in = 7, .out = 5, .experts = 4, .rank = 3, .alpha = 6};

template <class Space, class... Policies>
Linear<Space, Policies...> layer_of(moe::AdaptedLinearConfig c = config) {
  Linear<Space, Policies...> layer(c, frozen_linear<double, Space>(c.out, c.in, true), moe::Seed{3});
  randomise_parameters(layer);
  return layer;
}

TEMPLATE_LIST_TEST_CASE("AdaptedLinear passes the gradient check, dense and by rows", "", Spaces) {
  auto plain = layer_of<TestType>();
  check_adapted(plain, 7, 5);
  auto soft = layer_of<TestType, Soft, moe::RouterZLoss>();
  check_adapted(soft, 7, 5);
  auto hydra = layer_of<TestType, Soft, Hydra>();
  check_adapted(hydra, 7, 5);
  auto top2 = layer_of<TestType, Top2>();
  check_adapted(top2, 7, 5);
  auto hydra_top2 = layer_of<TestType, Top2, Hydra>();
  check_adapted(hydra_top2, 7, 5);
}

}  // namespace adapted_linear_test
