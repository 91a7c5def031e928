// SwitchHead against sums written out, its gradients and its cache; choices by group; the entropy loss.
#include <moe/moe.hpp>

#include "moe_test/attention.hpp"
#include "moe_test/layer_gradients.hpp"

namespace switch_head_test {

using namespace moe_test;

double sigmoid(double z) {
  return 1 / (1 + std::exp(-z));
}

/// One token, head and expert after another; all experts of a head where k is E.
template <int k, class Layer>
std::vector<double> expected(const Layer& layer, const moe::Batch<typename Layer::Scalar, typename Layer::Space>& batch,
                             const SequenceSetting& setting) {
  const auto& config = layer.config();
  const Index tokens = batch.tokens(), hidden = config.hidden, width = config.width(), heads = config.heads,
              columns = heads * width, experts = config.experts, all = heads * experts;
  const auto& p = layer.parameters;
  const auto source = doubles(p.source.weight), destination = doubles(p.destination.weight),
             query_key = doubles(p.query_key), value = doubles(p.value), output = doubles(p.output);
  const Rows x(batch.x);
  Rows q(tokens, columns), keys(tokens, columns), values(tokens, columns), of_values(tokens, all),
      of_outputs(tokens, all), one(tokens, width), y(tokens, hidden);
  const auto best = [&](Rows& logits, Index t, Index h) {
    const double* from = &logits(t, h * experts);
    return largest({from, from + experts}, k);
  };
  for (Index t = 0; t < tokens; ++t) {
    project(x, t, source.data(), all, of_values, 0);
    project(x, t, destination.data(), all, of_outputs, 0);
    project(x, t, query_key.data(), columns, q, 0);
    project(x, t, query_key.data() + columns * hidden, columns, keys, 0);
    for (Index h = 0; h < heads; ++h) {
      for (Index e : best(of_values, t, h)) {
        project(x, t, value.data() + (h * experts + e) * width * hidden, width, one, 0);
        for (Index d = 0; d < width; ++d)
          values(t, h * width + d) += sigmoid(of_values(t, h * experts + e)) * one(t, d);
      }
    }
  }
  const Rows mixed = attend_by_hand(setting, width, config.rotary_base, q, keys, values, [](Index h) { return h; });
  for (Index t = 0; t < tokens; ++t) {
    for (Index h = 0; h < heads && setting.live(t); ++h) {
      for (Index e : best(of_outputs, t, h)) {
        const double* weight = output.data() + (h * experts + e) * hidden * width;
        for (Index i = 0; i < hidden; ++i) {
          for (Index d = 0; d < width; ++d)
            y(t, i) += sigmoid(of_outputs(t, h * experts + e)) * weight[i * width + d] * mixed(t, h * width + d);
        }
      }
    }
  }
  return y.data;
}

template <int k, class Case, class... More>
using LayerOf = moe::SwitchHead<k, moe::On<typename Case::Space>, moe::Precision<typename Case::T>, More...>;

const moe::SwitchHeadConfig configs[] = {
    {.hidden = 24, .heads = 2, .experts = 5, .head_width = 8},
    {.hidden = 12, .heads = 1, .experts = 4, .head_width = 20, .layer = 1},
    {.hidden = 21, .heads = 3, .experts = 3, .rotary_base = 0, .layer = 2},
};
const SequenceSetting settings[] = {
    {{0, 150}},
    {{0, 3, 3, 40, 41, 110}},
    {{0, 30, 70}, std::vector<std::uint8_t>(70, 1)},
    {{0, 9, 60}, {}, std::vector<Index>(66, 0)},
};

TEMPLATE_LIST_TEST_CASE("SwitchHead is what its equations say, with all experts, too", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  const auto check = [](const auto& layer, auto k, SequenceSetting setting) {
    for (std::size_t t = 0; t < setting.mask.size(); ++t) setting.mask[t] = t % 7 != 2 && t != 0 && t < 65;
    for (std::size_t t = 0; t < setting.positions.size(); ++t) setting.positions[t] = Index(3 * t + 5);
    const Index tokens =
        std::max({setting.offsets.back(), Index(setting.mask.size()), Index(setting.positions.size())});
    INFO("heads " << layer.config().heads << ", k " << k() << ", tokens " << tokens);
    moe::Context<Space> ctx;
    typename std::decay_t<decltype(layer)>::Tape tape;
    const auto batch = batch_of<T, Space>(random<moe::Matrix<T, Space>>(1, tokens, layer.config().hidden), setting);
    const auto y = layer.forward(ctx, batch, tape);
    CHECK(worst(y, expected<decltype(k)::value>(layer, batch, setting)) < 40 * tolerance<T>(layer.config().hidden));
    CHECK(same_bits(clone(y), layer.forward(ctx, batch)));
  };
  for (const auto& config : configs) {
    for (const SequenceSetting& setting : settings) {
      check(LayerOf<2, TestType>(config, moe::Seed{5}), std::integral_constant<int, 2>{}, setting);
      check(LayerOf<3, TestType>(config, moe::Seed{6}), std::integral_constant<int, 3>{}, setting);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("SwitchHead passes the gradient check", "", Spaces) {
  using Case = moe_test::Case<TestType, double>;
  LayerOf<2, Case> two(configs[0], moe::Seed{7});
  check_layer(two);
  LayerOf<3, Case, moe::EntropyLoss, moe::RouterZLoss> three(configs[2], moe::Seed{8}, moe::EntropyLoss{0.3},
                                                             moe::RouterZLoss{0.2});
  check_layer(three);
  LayerOf<1, Case, moe::Router<moe::Sigmoid, moe::TopKPerGroup<1>, moe::ExpertDropout>, moe::EntropyLoss> dropout(
      configs[1], moe::Router<moe::Sigmoid, moe::TopKPerGroup<1>, moe::ExpertDropout>{moe::ExpertDropout{0.6}},
      moe::EntropyLoss{0.1}, moe::Seed{9});
  check_layer(dropout);
}

TEMPLATE_LIST_TEST_CASE("SwitchHead's dropped and padded choices give nothing, forwards and backwards", "", Spaces) {
  using Case = moe_test::Case<TestType, double>;
  moe::CapacityPolicy<moe::Drop> drop;
  moe::CapacityPolicy<moe::Pad> pad;
  drop.factor = pad.factor = 0.75;
  LayerOf<2, Case, moe::CapacityPolicy<moe::Drop>> drops(configs[0], drop, moe::Seed{10});
  check_layer(drops);
  LayerOf<2, Case, moe::CapacityPolicy<moe::Pad>> pads(configs[0], pad, moe::Seed{10});
  check_layer(pads);
}

TEMPLATE_LIST_TEST_CASE("SwitchHead in bfloat16 is what it is in f32, roughly", "", Spaces) {
  check_half(LayerOf<2, Case<TestType, float>>(configs[0], moe::Seed{13}),
             LayerOf<2, Case<TestType, moe::bfloat16>>(configs[0]));
}

TEMPLATE_LIST_TEST_CASE("Token by token with a cache, SwitchHead gives what it gives at once", "", Cases) {
  check_cache(LayerOf<2, TestType>(configs[0], moe::Seed{11}));
  check_cache(LayerOf<1, TestType>(configs[2], moe::Seed{12}));
}

TEST_CASE("Choices by group are the best of each group") {
  const moe::TopKPerGroup<2> selection{3};
  std::vector<float> key{1, 5, 5, 2, -1, -2, -3, -4, 0, 7, 3, 7};
  for (float& z : key) {
    if (z == -1 || z == -2 || z == -4) z = -std::numeric_limits<float>::infinity();
  }
  std::vector<moe::ExpertId> chosen(6, 99);
  selection.select(moe::Team{}, moe::Row<float>{key.data(), 12}, moe::Row<moe::ExpertId>{chosen.data(), 6});
  CHECK(chosen == std::vector<moe::ExpertId>{1, 2, 6, -1, 9, 11});
  CHECK(selection.choices() == 6);
}

TEST_CASE("The entropy loss is the negative entropy of the mean softmax, over groups") {
  moe::Context<> ctx;
  moe::Batch<float> batch = batch_of<float>(random<moe::Matrix<float>>(1, 300, 4), {{0, 300}});
  const moe::Router<moe::Sigmoid, moe::TopK<1>> router;
  auto parameters = router.parameters<float, Kokkos::DefaultExecutionSpace>({6, 4});
  randomise(parameters.weight, 2);
  moe::Routing<float> routing;
  router.forward(ctx, batch, parameters, {}, 6, routing);
  moe::Vector<double> slot("slot", 1);
  moe::EntropyLoss{0.5, 2}.value(ctx, batch, routing, slot);
  const auto logits = host(routing.logits);
  double expected = 0;
  for (Index g = 0; g < 2; ++g) {
    double p[3] = {};
    for (Index t = 0; t < 300; ++t) {
      double total = 0;
      for (Index e = 0; e < 3; ++e) total += std::exp(double(logits(t, 3 * g + e)));
      for (Index e = 0; e < 3; ++e) p[e] += std::exp(double(logits(t, 3 * g + e))) / total / 300;
    }
    for (double share : p) expected += 0.5 * share * std::log(share) / 2;
  }
  CHECK(std::abs(host(slot)(0) - expected) < 1e-6);
  const auto uneven = [&] { moe::EntropyLoss{0.5, 4}.value(ctx, batch, routing, slot); };
  CHECK_THROWS_WITH(uneven(), Catch::Matchers::Contains("6 experts do not divide into 4 groups"));
}

TEST_CASE("SwitchHead keeps the losses and balancing biases of both sides") {
  using Router = moe::Router<moe::Sigmoid, moe::TopKPerGroup<1>, moe::BiasBalancer>;
  using Layer = moe::SwitchHead<1, Router, moe::EntropyLoss>;
  Layer layer({.hidden = 16, .heads = 2, .experts = 3}, moe::Seed{12});
  moe::Context<> ctx;
  Layer::Tape tape;
  const auto batch = batch_of<float>(random<moe::Matrix<float>>(1, 50, 16), {{0, 50}});
  layer.forward(ctx, batch, tape);
  const auto losses = tape.loss_values();
  REQUIRE(losses.size() == 2);
  for (double loss : losses) CHECK((loss < 0 && loss >= -1e-3 * std::log(3.0) - 1e-9));
  CHECK(losses[0] != losses[1]);
  CHECK(moe::load_report(tape.source).assignments() == 100);
  CHECK(moe::load_report(tape.destination).assignments() == 100);
  moe::LoadStatistics<> source, destination;
  source.add(tape.source.plan, batch.mask);
  CHECK_THROWS_WITH(layer.update_balance(ctx, source, destination), Catch::Matchers::Contains("counts of 0 experts"));
  destination.add(tape.destination.plan, batch.mask);
  layer.update_balance(ctx, source, destination);
  for (const auto* side : {&layer.buffers.source, &layer.buffers.destination}) {
    double moved = 0;
    for (double bias : doubles(side->balance_bias)) moved += std::abs(bias);
    CHECK(moved > 0);
  }
  std::vector<std::string> names;
  layer.visit([&](const moe::ParameterInfo& info, const auto&) { names.push_back(info.name); });
  CHECK(names == std::vector<std::string>{"source_router.weight", "destination_router.weight", "qk_proj",
                                          "experts.v_proj", "experts.o_proj"});
}

TEST_CASE("SwitchHead drops experts of its two sides apart") {
  using Space = Kokkos::DefaultHostExecutionSpace;
  using Layer = moe::SwitchHead<1, moe::Router<moe::Sigmoid, moe::TopKPerGroup<1>, moe::ExpertDropout>, moe::On<Space>>;
  Layer layer({.hidden = 8, .heads = 2, .experts = 4},
              moe::Router<moe::Sigmoid, moe::TopKPerGroup<1>, moe::ExpertDropout>{moe::ExpertDropout{0.5}},
              moe::Seed{1});
  Kokkos::deep_copy(layer.parameters.destination.weight, layer.parameters.source.weight);
  moe::Context<Space> ctx;
  Layer::Tape tape;
  moe::Batch<float, Space> batch;
  batch.x = random<moe::Matrix<float, Space>>(1, 40, 8);
  layer.forward(ctx, batch, tape);
  CHECK_FALSE(same_bits(tape.source.routing.assignments.expert, tape.destination.routing.assignments.expert));
  ctx.training = false;
  layer.forward(ctx, batch, tape);
  CHECK(same_bits(tape.source.routing.assignments.expert, tape.destination.routing.assignments.expert));
}

TEST_CASE("SwitchHead says what does not fit") {
  using Catch::Matchers::Contains;
  using Layer = moe::SwitchHead<2>;
  CHECK_THROWS_WITH(Layer({.hidden = 16, .heads = 2}), Contains("0 experts a head"));
  CHECK_THROWS_WITH(Layer({.hidden = 16, .heads = 2, .experts = 1}), Contains("cannot choose 2 of 1 experts in each"));
  CHECK_THROWS_WITH(Layer({.hidden = 16, .heads = 3, .experts = 4}), Contains("does not divide into 3 heads"));
  const moe::TopKPerGroup<2> uneven{3};
  CHECK_THROWS_WITH(uneven.check({8, 4}), Contains("8 experts do not divide into 3 groups"));
  Layer layer({.hidden = 8, .heads = 2, .experts = 4}), other({.hidden = 8, .heads = 2, .experts = 4});
  moe::Context<> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients(), others = other.gradients();
  const auto x = random<moe::Matrix<float>>(1, 5, 8);
  CHECK_THROWS_WITH(layer.backward(ctx, x, tape, gradients), Contains("this tape is empty"));
  CHECK_THROWS_WITH(layer.forward(ctx, batch_of<float>(random<moe::Matrix<float>>(1, 5, 7), {{0, 5}}), tape),
                    Contains("hidden is 8"));
  layer.forward(ctx, batch_of<float>(x, {{0, 5}}), tape);
  CHECK_THROWS_WITH(other.backward(ctx, x, tape, others), Contains("belongs to another layer"));
  CHECK_THROWS_WITH(layer.backward(ctx, x, tape, others), Contains("gradients belong to another layer"));
  auto cache = layer.cache(1, 3);
  const auto overflow = [&] {
    layer.forward(ctx, batch_of<float>(x, {{0, 5}}), cache);
    ctx.check();
  };
  CHECK_THROWS_WITH(overflow(), Contains("more tokens than its key/value cache holds"));
  layer.forward(ctx, batch_of<float>(moe::Matrix<float>("none", 0, 8), {{0, 0}}), tape);
  layer.backward(ctx, moe::Matrix<float>("none", 0, 8), tape, gradients);
  CHECK(tape.dx.extent(0) == 0);
}

}  // namespace switch_head_test
