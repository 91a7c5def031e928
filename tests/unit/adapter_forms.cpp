// Forms of adapters and losses on them: gradients in double.
#include <moe/adapters/activation_scaling.hpp>
#include <moe/adapters/contrastive_loss.hpp>
#include <moe/adapters/elementwise_low_rank.hpp>
#include <moe/adapters/universal_adapter.hpp>
#include <moe/balance/task_loss.hpp>
#include <moe/routing/task_choice.hpp>
#include <moe/routing/task_logits.hpp>

#include "moe_test/adapters.hpp"
#include "moe_test/layer_gradients.hpp"

namespace adapter_forms_test {

using namespace moe_test;

template <class Space, class... Policies>
using Linear = moe::AdaptedLinear<moe::On<Space>, moe::Precision<double>, Policies...>;
using Soft = moe::Router<moe::Softmax, moe::AllExperts>;
using Top2 = moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum>;
const moe::AdaptedLinearConfig config{.in = 7, .out = 5, .experts = 4, .rank = 3, .alpha = 6};

template <class Space, class... Policies>
Linear<Space, Policies...> layer_of() {
  Linear<Space, Policies...> layer(config, frozen_linear<double, Space>(5, 7, true), moe::Seed{3});
  randomise_parameters(layer);
  return layer;
}

using ByTask = moe::Router<moe::NoLogits, moe::Identity, moe::TaskChoice, moe::ConstantWeight>;
using TaskGate = moe::Router<moe::TaskLogits, moe::Softmax, moe::AllExperts>;

TEMPLATE_LIST_TEST_CASE("Every form of adapters passes the gradient check", "", Spaces) {
  auto vectors = layer_of<TestType, Soft, moe::ActivationScaling>();
  check_adapted(vectors, 7, 5);
  auto top_vectors = layer_of<TestType, Top2, moe::ActivationScaling>();
  check_adapted(top_vectors, 7, 5);
  auto elementwise = layer_of<TestType, ByTask, moe::ElementwiseLowRank>();
  check_adapted(elementwise, 7, 5);
  auto weighted = layer_of<TestType, Top2, moe::ElementwiseLowRank>();
  check_adapted(weighted, 7, 5);
  auto universal = layer_of<TestType, moe::Router<moe::Softmax, moe::TopK<1>>, moe::WithUniversal<>>();
  check_adapted(universal, 7, 5);
  auto beside = layer_of<TestType, ByTask, moe::WithUniversal<moe::LowRankAdapters<>, moe::FullWeight>>();
  check_adapted(beside, 7, 5);
  auto frozen = layer_of<TestType, Soft, moe::FrozenAdapters<>>();
  randomise(frozen.parameters.adapters.frozen.a, 5);
  randomise(frozen.parameters.adapters.frozen.b, 6);
  check_adapted(frozen, 7, 5);
}

TEMPLATE_LIST_TEST_CASE("Losses and task gates of adapters pass the gradient check", "", Spaces) {
  moe::TaskLogits tasks{.tasks = 3, .width = 6};
  Linear<TestType, TaskGate, moe::TaskClassificationLoss> gate(
      config, frozen_linear<double, TestType>(5, 7), TaskGate{tasks}, moe::TaskClassificationLoss{0.3}, moe::Seed{4});
  randomise_parameters(gate);
  check_adapted(gate, 7, 5);
  auto contrast = layer_of<TestType, Top2, moe::ContrastiveExpertLoss>();
  check_adapted(contrast, 7, 5);
  auto soft_contrast = layer_of<TestType, Soft, moe::ContrastiveExpertLoss>();
  check_adapted(soft_contrast, 7, 5);
}

}  // namespace adapter_forms_test
