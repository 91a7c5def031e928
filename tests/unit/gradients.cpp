// Whole layers: every gradient against central differences in double, losses included.
#include <moe/moe.hpp>

#include "moe_test/cases.hpp"

namespace gradients_test {

using namespace moe_test;

constexpr Index tokens = 24, hidden = 7, intermediate = 5, experts = 8;

/// sum(y * g) + the layer's losses, and its gradients by every parameter and by x.
template <class Layer>
void check_layer(Layer& layer, bool with_mask = true) {
  using Space = typename Layer::Space;
  moe::Context<Space> ctx;
  typename Layer::Tape tape;
  auto gradients = layer.gradients();
  auto x = random<moe::Matrix<double, Space>>(1, tokens, hidden);
  auto g = random<moe::Matrix<double, Space>>(2, tokens, hidden);
  moe::Batch<double, Space> batch;
  batch.x = x;
  batch.sequence_offsets = indices<Space>({0, 9, 10, tokens});
  if (with_mask) {
    moe::Vector<std::uint8_t, Space> mask("mask", tokens);
    Kokkos::deep_copy(mask, std::uint8_t(1));
    Kokkos::deep_copy(Kokkos::subview(mask, Kokkos::pair<int, int>(12, 15)), std::uint8_t(0));
    batch.mask = mask;
  }
  auto value = [&] {
    const auto y = host(layer.forward(ctx, batch, tape));
    const auto weight = host(g);
    double sum = tape.loss();
    for (std::size_t i = 0; i < y.size(); ++i) sum += y.data()[i] * weight.data()[i];
    return sum;
  };
  value();
  const auto dx = clone(layer.backward(ctx, g, tape, gradients));
  check_gradient(x, dx, value);
  auto compare = [&](std::string_view name, auto& parameter, auto& gradient) {
    INFO(std::string(name));
    check_gradient(parameter, gradient, value);
  };
  Layer::Parameters::visit(compare, layer.parameters, static_cast<typename Layer::Parameters&>(gradients));
}

template <class Space, class... Policies>
using LayerOf = moe::MoELayer<moe::On<Space>, moe::Precision<double>, Policies...>;

const moe::MoEConfig config{.hidden = hidden, .intermediate = intermediate, .experts = experts};

using Spaces = std::tuple<Kokkos::DefaultExecutionSpace
#if defined(KOKKOS_ENABLE_SERIAL) && defined(KOKKOS_ENABLE_OPENMP)
                          ,
                          Kokkos::Serial
#endif
                          >;

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
