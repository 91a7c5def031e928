// Frozen experts with low-rank updates: gradients, agreement with merged weights, what is shared and what is trained.
#include <moe/adapters/adapt_experts.hpp>
#include <moe/adapters/merge.hpp>
#include <set>

#include "moe_test/layer_gradients.hpp"
#include "moe_test/layers.hpp"

namespace adapted_experts_test {

using namespace moe_test;
using Catch::Matchers::Contains;

constexpr moe::MoEConfig small{.hidden = 10, .intermediate = 7, .experts = 5};
constexpr moe::AdaptedExpertsOptions options{.rank = 3, .alpha = 4.5};

/// A layer whose vectors are not zero, and its adapted form whose updates are not zero.
template <class Layer>
Layer varied(const moe::MoEConfig& config = small) {
  Layer layer(config, moe::Seed{5});
  auto fill = [seed = 30u](std::string_view, auto& view) mutable {
    if (view.is_allocated()) randomise(view, ++seed);
  };
  Layer::Parameters::visit(fill, layer.parameters);
  return layer;
}
template <class Layer>
auto adapted_from(const Layer& layer, const moe::AdaptedExpertsOptions& of = options) {
  auto adapted = moe::adapt_experts(layer, of, moe::Seed{7});
  const auto trained = moe::adapters_only(adapted);
  auto fill = [seed = 60u](std::string_view, auto& view) mutable { randomise(view, ++seed); };
  std::decay_t<decltype(trained)>::visit(fill, trained);
  return adapted;
}

using Softmax2 = moe::Router<moe::Softmax, moe::TopK<2>>;
template <class Space, class... Policies>
using In = moe::MoELayer<moe::On<Space>, moe::Precision<double>, Softmax2, Policies...>;

TEMPLATE_LIST_TEST_CASE("Gradients of adapted experts are right", "", Spaces) {
  SECTION("gated") {
    auto layer = adapted_from(varied<In<TestType>>());
    check_layer(layer);
  }
  SECTION("of two ranks") {
    auto layer = adapted_from(varied<In<TestType>>());
    auto& down = layer.parameters.experts.down;
    const auto e = down.adapters();
    down.a = random<std::decay_t<decltype(down.a)>>(8, e, 2 * down.rank() + 1, down.in());
    down.b = random<std::decay_t<decltype(down.b)>>(9, e, down.out(), Index(down.a.extent(1)));
    check_layer(layer);
  }
  SECTION("with biases, without a gate") {
    auto layer = adapted_from(varied<In<TestType, moe::ExpertFFN<moe::ReLU, moe::Bias>, moe::SwitchBalanceLoss>>());
    check_layer(layer);
  }
}

TEMPLATE_LIST_TEST_CASE("Gradients of adapted experts are right in other layers", "", Spaces) {
  SECTION("recomputed") {
    auto layer = adapted_from(varied<In<TestType, moe::ActivationCheckpointing>>());
    layer.template get<moe::ActivationCheckpointing>().level = moe::Recompute::everything;
    check_layer(layer);
  }
  SECTION("weights on the input") {
    auto layer = adapted_from(varied<In<TestType, moe::WeightOnInput>>());
    check_layer(layer);
  }
  SECTION("beside experts that compute nothing, with shared experts") {
    auto layer = adapted_from(
        varied<In<TestType, moe::WithExtraExperts<moe::ExpertFFN<moe::SwiGLU>, 2>, moe::SharedExperts<1>>>());
    check_layer(layer);
  }
}

/// y and dx beside those of a layer with the updates merged into its weights.
template <class T, class Layer>
void check_merged(double tolerance) {
  const auto layer = varied<Layer>();
  const auto adapted = adapted_from(layer);
  using Space = typename Layer::Space;
  const auto x = random<moe::Matrix<T, Space>>(1, 40, small.hidden),
             dy = random<moe::Matrix<T, Space>>(2, 40, small.hidden);
  moe::Context<Space> ctx;
  typename Layer::Tape tape;
  typename std::decay_t<decltype(adapted)>::Tape adapted_tape;
  auto gradients = layer.gradients();
  auto adapted_gradients = adapted.gradients();
  const auto before = clone(layer.forward(ctx, x, tape));
  const auto y = host(clone(adapted.forward(ctx, x, adapted_tape)));
  const auto dx = host(clone(adapted.backward(ctx, dy, adapted_tape, adapted_gradients)));

  moe::MergedWeight<T, Space> up(layer.parameters.experts.up), down(layer.parameters.experts.down);
  up.merge_each(ctx, adapted.parameters.experts.up, options.scaling());
  down.merge_each(ctx, adapted.parameters.experts.down, options.scaling());
  const auto expected_y = host(clone(layer.forward(ctx, x, tape)));
  const auto expected_dx = host(clone(layer.backward(ctx, dy, tape, gradients)));
  const auto distance = [](const auto& a, const auto& b) {
    double worst = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
      worst = std::max(worst, std::abs(double(a.data()[i]) - double(b.data()[i])));
    return worst / largest(b);
  };
  CHECK(distance(y, expected_y) < tolerance);
  CHECK(distance(dx, expected_dx) < tolerance);
  CHECK(distance(y, host(before)) > 10 * tolerance);  // the updates say something
  up.unmerge(ctx);
  down.unmerge(ctx);
  CHECK(same_bits(before, layer.forward(ctx, x, tape)));
}

TEST_CASE("Adapted experts are the experts with their updates merged") {
  using Space = moe::On<Kokkos::DefaultExecutionSpace>;
  SECTION("double") {
    check_merged<double, moe::MoELayer<Space, moe::Precision<double>, Softmax2>>(1e-13);
  }
  SECTION("float, biases") {
    check_merged<float, moe::MoELayer<Space, Softmax2, moe::ExpertFFN<moe::ClampedSwiGLU, moe::Bias>>>(2e-6);
  }
  SECTION("bfloat16") {
    check_merged<moe::bfloat16, moe::MoELayer<Space, moe::Precision<moe::bfloat16, float>, Softmax2>>(0.03);
  }
}

using Layer = moe::MoELayer<Softmax2, moe::SharedExperts<1>>;

TEST_CASE("A fresh adapted layer computes what its base does, and shares its memory") {
  const auto layer = varied<Layer>();
  const auto adapted = moe::adapt_experts(layer, options);
  moe::Context ctx;
  const auto x = random<moe::Matrix<float>>(1, 40, small.hidden);
  const auto y = clone(layer.forward(ctx, x));
  CHECK(same_bits(y, adapted.forward(ctx, x)));
  const auto& frozen = std::any_cast<const Layer::Experts::Parameters<float, Layer::Space>&>(
      adapted.value<moe::AdaptedExperts<>>().frozen);
  CHECK(frozen.up.data() == layer.parameters.experts.up.data());
  CHECK(adapted.parameters.branches.first.ffn.down.data() == layer.parameters.branches.first.ffn.down.data());
  CHECK(adapted.parameters.router.weight.data() != layer.parameters.router.weight.data());
  CHECK(adapted.forward(ctx, moe::Matrix<float>("x", 0, small.hidden)).extent(0) == 0);
}

TEST_CASE("Names and shapes of experts' updates are those of PEFT's adapters") {
  const auto adapted = moe::adapt_experts(varied<Layer>(), options);
  std::vector<std::string> names;
  auto note = [&](std::string_view name, const auto& view) {
    names.push_back(std::string(name) +
                    moe::detail::sentence(" ", view.extent(0), " ", view.extent(1), " ", view.extent(2)));
  };
  const auto trained = moe::adapters_only(adapted);
  std::decay_t<decltype(trained)>::visit(note, trained);
  CHECK(names == std::vector<std::string>{"experts.gate_up_proj.lora_A 5 3 10", "experts.gate_up_proj.lora_B 5 14 3",
                                          "experts.down_proj.lora_A 5 3 7", "experts.down_proj.lora_B 5 10 3"});
}

TEST_CASE("An optimiser of adapters trains them alone, or with the router") {
  const auto layer = varied<Layer>();
  moe::Context ctx;
  const auto x = random<moe::Matrix<float>>(1, 40, small.hidden), dy = random<moe::Matrix<float>>(2, 40, small.hidden);
  const auto changed = [&]<bool with_router>(std::bool_constant<with_router>) {
    const auto adapted = adapted_from(layer);
    using Adapted = std::decay_t<decltype(adapted)>;
    auto trained = moe::adapters_only<with_router>(adapted);
    moe::AdamW optimizer(trained);
    auto gradients = adapted.gradients();
    auto trained_gradients = moe::adapters_only<with_router>(adapted, gradients);
    typename Adapted::Tape tape;
    std::vector<moe::Matrix<float>> old;
    auto keep = [&](std::string_view, const auto& view) {
      moe::Matrix<float> copy("copy", 1, view.size());
      Kokkos::deep_copy(moe::detail::flat(copy), moe::detail::flat(view));
      old.push_back(copy);
    };
    Adapted::Parameters::visit(keep, adapted.parameters);
    adapted.forward(ctx, x, tape);
    adapted.backward(ctx, dy, tape, gradients);
    optimizer.step(ctx, trained, trained_gradients, 1e-2);
    std::set<std::string> names;
    std::size_t at = 0;
    auto compare = [&](std::string_view name, const auto& view) {
      moe::Matrix<float> now("now", 1, view.size());
      Kokkos::deep_copy(moe::detail::flat(now), moe::detail::flat(view));
      if (!same_bits(now, old[at++])) names.insert(std::string(name));
    };
    Adapted::Parameters::visit(compare, adapted.parameters);
    return names;
  };
  const std::set<std::string> adapters{"experts.gate_up_proj.lora_A", "experts.gate_up_proj.lora_B",
                                       "experts.down_proj.lora_A", "experts.down_proj.lora_B"};
  auto with_router = adapters;
  with_router.insert("router.weight");
  const auto router = clone(layer.parameters.router.weight);
  CHECK(changed(std::false_type{}) == adapters);
  CHECK(changed(std::true_type{}) == with_router);
  CHECK(same_bits(router, layer.parameters.router.weight));
}

TEST_CASE("Shared experts without gradients change no other gradient") {
  const auto adapted = adapted_from(varied<Layer>());
  using Adapted = std::decay_t<decltype(adapted)>;
  moe::Context ctx;
  const auto x = random<moe::Matrix<float>>(1, 40, small.hidden), dy = random<moe::Matrix<float>>(2, 40, small.hidden);
  typename Adapted::Tape tape;
  auto all = adapted.gradients(), some = adapted.gradients();
  some.branches.first.ffn = {};
  adapted.forward(ctx, x, tape);
  const auto dx = clone(adapted.backward(ctx, dy, tape, all));
  CHECK(same_bits(dx, adapted.backward(ctx, dy, tape, some)));
  auto compare = [](std::string_view name, const auto& one, const auto& other) {
    INFO(std::string(name));
    if (other.is_allocated()) CHECK(same_bits(one, other));
  };
  Adapted::Parameters::visit(compare, all, some);
}

TEST_CASE("Adapted experts that do not fit are refused") {
  const auto layer = varied<Layer>();
  CHECK_THROWS_WITH(moe::adapt_experts(layer, {.rank = 0}), Contains("rank 0; it must be positive"));
  using Own = moe::MoELayer<Softmax2, moe::AdaptedExperts<>>;
  CHECK_THROWS_WITH(Own(small), Contains("no frozen experts of the layer's precision and space"));
  const moe::AdaptedExperts<> experts{{}, options, layer.parameters.experts};
  auto wider = small;
  wider.intermediate = 8;
  CHECK_THROWS_WITH(Own(wider, experts), Contains("gate_up_proj has shape (5, 14, 10), the layer needs (5, 16, 10)"));
  CHECK(Own(small, experts).parameters.experts.up.rank() == 3);
  using Wide = moe::MoELayer<moe::Precision<double>, Softmax2, moe::AdaptedExperts<>>;
  CHECK_THROWS_AS(Wide(small, experts), moe::ConfigError);
}

TEST_CASE("Scalings of updates are alpha by rank, or by its root") {
  CHECK(options.scaling() == 1.5);
  CHECK(moe::AdaptedExpertsOptions{.rank = 16, .alpha = 8, .rank_stabilized = true}.scaling() == 2);
}

}  // namespace adapted_experts_test
