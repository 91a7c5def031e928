// Whole layers: every gradient against central differences in double, losses included.
#include <moe/moe.hpp>

#include "moe_test/layer_gradients.hpp"

namespace gradients_test {

using namespace moe_test;

template <class Space, class... Policies>
using LayerOf = moe::MoELayer<moe::On<Space>, moe::Precision<double>, Policies...>;

constexpr Index hidden = 7, intermediate = 5, experts = 8;
const moe::MoEConfig config{.hidden = hidden, .intermediate = intermediate, .experts = experts};

TEMPLATE_LIST_TEST_CASE("DeepSeek-V3 layers pass the gradient check", "", Spaces) {
  using Router = moe::Router<moe::Sigmoid, moe::TopK<3>, moe::GroupLimit<4, 2, moe::BestTwo>, moe::BiasBalancer,
                             moe::NormalizeSum, moe::Scale>;
  LayerOf<TestType, Router, moe::SharedExperts<2, moe::SwiGLU, moe::SigmoidGate>, moe::SequenceBalanceLoss,
          moe::RouterZLoss>
      layer(config, Router{moe::Scale{2.5}}, moe::SequenceBalanceLoss(0.3), moe::RouterZLoss{0.1}, moe::Seed{3});
  check_layer(layer);
}

TEMPLATE_LIST_TEST_CASE("Layers that drop pass the gradient check", "", Spaces) {
  using Router = moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum, moe::Jitter>;
  using Capacity = moe::CapacityPolicy<moe::Drop>;
  Capacity capacity;
  capacity.factor = 0.8;
  capacity.scope = moe::Scope::groups_of(12);
  for (auto priority : {moe::Priority::position, moe::Priority::choice, moe::Priority::score}) {
    for (auto renormalize : {moe::Renormalize::never, moe::Renormalize::after_drops}) {
      capacity.priority = priority;
      capacity.renormalize = renormalize;
      LayerOf<TestType, Router, moe::ExpertFFN<moe::GELU, moe::Bias>, Capacity, moe::GShardBalanceLoss> layer(
          config, capacity, moe::GShardBalanceLoss(0.5), moe::Seed{4});
      check_layer(layer);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("Padded layers pass the gradient check", "", Spaces) {
  using Capacity = moe::CapacityPolicy<moe::Pad>;
  Capacity capacity;
  capacity.factor = 1.0;
  LayerOf<TestType, moe::Router<moe::Softmax, moe::TopK<1>>, moe::ExpertFFN<moe::GeGLU, moe::Bias>, Capacity,
          moe::SwitchBalanceLoss>
      layer(config, capacity,
            moe::SwitchBalanceLoss(0.5, moe::Count::all, moe::Scope::batch(), moe::Probability::softmax), moe::Seed{5});
  check_layer(layer);
}

TEMPLATE_LIST_TEST_CASE("Expert choice passes the gradient check", "", Spaces) {
  using Router = moe::Router<moe::Softmax, moe::ExpertChoice>;
  moe::ExpertChoice choice;
  choice.scope = moe::Scope::sequence();
  LayerOf<TestType, Router, moe::ExpertFFN<moe::SiLU>, moe::ExpertBalanceLoss> layer(
      config, Router{choice}, moe::ExpertBalanceLoss(0.2), moe::Seed{6});
  check_layer(layer);
}

}  // namespace gradients_test
