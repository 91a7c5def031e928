// A mixture of depths in training: its golden, gradients, and which tokens go through the block with what they know.
#include "moe_test/blocks.hpp"
#include "moe_test/golden.hpp"
#include "moe_test/layers.hpp"

namespace mixture_of_depths_test {

using namespace moe_test;
using Catch::Matchers::Contains;
using Space = Kokkos::DefaultHostExecutionSpace;
using MoE = HostLayer<double, moe::Router<moe::Softmax, moe::TopK<2>>, moe::ExpertFFN<moe::SiLU>>;
using BalancedMoE = HostLayer<double, moe::Router<moe::Softmax, moe::TopK<2>>, moe::ExpertFFN<moe::SiLU>,
                              moe::SwitchBalanceLoss, moe::RouterZLoss>;
using Tanh = TanhBlock<double>;
using moe::DepthChoice;
const moe::MoEConfig moe_config{.hidden = 7, .intermediate = 5, .experts = 4};

std::vector<Index> ones(const moe::Vector<std::uint8_t, Space>& marks) {
  std::vector<Index> result;
  for (std::size_t t = 0; t < marks.size(); ++t) {
    if (marks(t) != 0) result.push_back(Index(t));
  }
  return result;
}

template <class View>
std::vector<Index> list(const View& view, Index count = -1) {
  std::vector<Index> result;
  for (Index i = 0; i < (count < 0 ? Index(view.extent(0)) : count); ++i) result.push_back(Index(view(i)));
  return result;
}

TEST_CASE("A mixture of depths agrees with its golden") {
  const GoldenFile golden("mixture_of_depths");
  using Layer = moe::MixtureOfDepths<TanhBlock<float>, moe::ChoiceCrossEntropy>;
  Layer layer({.block = {.hidden = 4}, .capacity = 0.375}, moe::ChoiceCrossEntropy{1});
  const auto x = golden.file.read<float>("x"), router = golden.file.read<float>("router"),
             weight = golden.file.read<float>("block"), r = golden.file.read<float>("r"),
             y = golden.file.read<float>("y");
  const auto index = golden.file.read<std::int32_t>("index");
  std::copy(router.begin(), router.end(), layer.parameters.router.weight.data());
  std::copy(weight.begin(), weight.end(), layer.parameters.block.weight.data());
  moe::Matrix<float, Space> tokens("x", 16, 4);
  std::copy(x.begin(), x.end(), tokens.data());
  moe::Batch<float, Space> batch;
  batch.x = tokens;
  batch.sequence_offsets = indices<Space>({0, 8, 16});
  moe::Context<Space> ctx;
  Layer::Tape tape;
  const auto got = layer.forward(ctx, batch, tape);
  for (std::size_t i = 0; i < y.size(); ++i) CHECK(got.data()[i] == Approx(y[i]).margin(1e-6));
  for (std::size_t t = 0; t < r.size(); ++t) CHECK(tape.routing.logits(t, 0) == Approx(r[t]).margin(1e-6));
  std::vector<Index> chosen;
  for (std::size_t i = 0; i < index.size(); ++i) chosen.push_back(index[i] + (i < 3 ? 0 : 8));
  CHECK(ones(tape.chosen) == chosen);
  CHECK(tape.loss() == Approx(golden.file.read<float>("bce")[0]).epsilon(1e-6));
}

TEST_CASE("A mixture of depths passes the gradient check, with losses of its own and of the block") {
  using Layer = moe::MixtureOfDepths<BalancedMoE, moe::ChoiceCrossEntropy, moe::RouterZLoss>;
  Layer layer({.block = moe_config, .capacity = 0.4}, moe::ChoiceCrossEntropy{0.7}, moe::RouterZLoss{0.1},
              moe::Seed{3});
  check_layer(layer, Tokens<double>(24, 7, {0, 5, 20}), true);
}

TEST_CASE("A mixture of depths passes the gradient check with sigmoid weights and a router's own input") {
  using Router = moe::Router<moe::BiasedLogits, moe::Sigmoid, moe::ExpertChoice, moe::LearnedScale>;
  using Layer = moe::MixtureOfDepths<Tanh, Router, moe::ChoiceCrossEntropy>;
  Layer layer({.block = {.hidden = 6}, .capacity = 0.3, .router_hidden = 5}, moe::ChoiceCrossEntropy{0.5},
              moe::Seed{5});
  Tokens<double> tokens(20, 6, {3});
  tokens.give_router_input(5);
  check_layer(layer, tokens, true);
}

TEST_CASE("Gradients flow where a causal rule chose, too") {
  using Layer = moe::MixtureOfDepths<Tanh, moe::ChoiceCrossEntropy>;
  Layer layer({.block = {.hidden = 6}}, moe::Seed{4});
  const Tokens<double> tokens(20, 6, {3});
  check_layer(layer, tokens, false);
  moe::Context<Space> ctx;
  ctx.training = false;
  Layer::Tape tape;
  layer.forward(ctx, tokens.batch, tape);
  CHECK(tape.choice == DepthChoice::router);
  CHECK(tape.loss() == 0);
}

TEST_CASE("A depth predictor is trained by its own cross entropy, and x does not feel it") {
  using Layer = moe::MixtureOfDepths<Tanh, moe::DepthPredictor, moe::ChoiceCrossEntropy>;
  Layer layer({.block = {.hidden = 6}, .capacity = 0.4}, moe::DepthPredictor{.width = 5, .coefficient = 0.6},
              moe::ChoiceCrossEntropy{0.3}, moe::Seed{4});
  vary_vectors(layer.parameters);
  const Tokens<double> tokens(20, 6, {3, 11});
  moe::Context<Space> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients();
  const auto without = [&] {
    const auto y = layer.forward(ctx, tokens.batch, tape);
    double sum = tape.loss_values()[0];
    for (std::size_t i = 0; i < y.size(); ++i) sum += y.data()[i] * tokens.dy.data()[i];
    return sum;
  };
  const auto with = [&] {
    const double sum = without();
    REQUIRE(tape.loss_values().size() == 2);
    CHECK(tape.loss_values()[1] > 0.1);
    CHECK(tape.loss() == tape.loss_values()[0] + tape.loss_values()[1]);
    return sum + tape.loss_values()[1];
  };
  with();
  const auto dx = clone(layer.backward(ctx, tokens.dy, tape, gradients));
  check_gradient(tokens.x, dx, without);
  std::vector<std::string> names;
  auto compare = [&](std::string_view name, auto& parameter, auto& gradient) {
    CAPTURE(std::string(name));
    names.emplace_back(name);
    check_gradient(parameter, gradient, with);
    CHECK(largest(gradient) > 1e-4);
  };
  Layer::Parameters::visit(compare, layer.parameters, static_cast<Layer::Parameters&>(gradients));
  CHECK(names == std::vector<std::string>{"router.weight", "predictor.first.weight", "predictor.first.bias",
                                          "predictor.weight", "predictor.bias", "block.weight"});
}

TEST_CASE("The cross entropy of choices passes the gradient check among many experts") {
  const moe::MoEConfig config{.hidden = 5, .intermediate = 3, .experts = 6};
  HostLayer<double, moe::Router<moe::Sigmoid, moe::TopK<2>>, moe::ChoiceCrossEntropy> layer(
      config, moe::ChoiceCrossEntropy{2}, moe::Seed{3});
  const Tokens<double> tokens(9, 5, {0, 5});
  check_layer(layer, tokens);
  moe::Context<Space> ctx;
  decltype(layer)::Tape tape;
  layer.forward(ctx, tokens.batch, tape);
  double sum = 0;
  for (Index t : {1, 2, 3, 4, 6, 7, 8}) {
    for (Index e = 0; e < 6; ++e) {
      const bool chosen =
          tape.routing.assignments.expert(2 * t) == e || tape.routing.assignments.expert(2 * t + 1) == e;
      const double p = 1 / (1 + std::exp(-tape.routing.logits(t, e)));
      sum -= std::log(chosen ? p : 1 - p);
    }
  }
  CHECK(tape.loss() == Approx(2 * sum / 42));
}

TEST_CASE("The block sees the chosen tokens in order, with their positions, ids, sequences and tasks") {
  using Layer = moe::MixtureOfDepths<Tanh>;
  Layer layer({.block = {.hidden = 1}, .capacity = 0.5});
  layer.parameters.router.weight(0, 0) = 1;
  moe::Batch<double, Space> batch;
  moe::Matrix<double, Space> x("x", 11, 1);
  const double values[] = {5, 1, 4, 9, 2, 7, 8, 3, 6, 1, 5};
  std::copy(values, values + 11, x.data());
  moe::Vector<std::uint8_t, Space> mask("mask", 11);
  for (Index t = 0; t < 11; ++t) mask(t) = t != 3;
  moe::Vector<std::int32_t, Space> ids("ids", 11), tasks("tasks", 5);
  for (Index t = 0; t < 11; ++t) ids(t) = std::int32_t(100 + t);
  batch.x = x;
  batch.sequence_offsets = indices<Space>({0, 5, 5, 6, 10, 11});  // the second is empty
  batch.mask = mask;
  batch.token_ids = ids;
  batch.task_ids = tasks;
  moe::Context<Space> ctx;
  Layer::Tape tape;
  const auto y = layer.forward(ctx, batch, tape);
  const std::vector<Index> chosen{0, 2, 5, 6, 8, 10};  // at least one of each sequence
  CHECK(ones(tape.chosen) == chosen);
  const auto& rows = tape.block.batch;
  const Index bound = rows.tokens();
  CHECK((moe::detail::device_path<Space> ? bound >= 6 : bound == 6));
  CHECK(rows.mask.is_allocated() == moe::detail::device_path<Space>);
  CHECK(list(rows.sequence_offsets) == std::vector<Index>{0, 2, 2, 3, 5, bound});
  CHECK(list(rows.positions, 6) == std::vector<Index>{0, 2, 0, 0, 2, 0});
  CHECK(list(rows.token_ids, 6) == std::vector<Index>{100, 102, 105, 106, 108, 110});
  CHECK(rows.task_ids.data() == tasks.data());
  for (std::size_t r = 0; r < chosen.size(); ++r) CHECK(rows.x(r, 0) == values[chosen[r]]);
  if (rows.mask.is_allocated()) {
    for (Index r = 0; r < bound; ++r) CHECK((rows.mask(r) != 0) == (r < 6));
  }
  for (Index t = 0; t < 11; ++t) {
    if (tape.chosen(t) == 0) CHECK(y(t, 0) == values[t]);
  }
  batch.positions = indices<Space>({10, 11, 12, 13, 14, 25, 36, 37, 38, 39, 40});
  layer.forward(ctx, batch, tape);
  CHECK(list(tape.block.batch.positions, 6) == std::vector<Index>{10, 12, 25, 36, 38, 40});
}

TEST_CASE("Sequences of one length need no mask, and one sequence no offsets") {
  moe::MixtureOfDepths<Tanh> layer({.block = {.hidden = 3}, .capacity = 0.25});
  const Tokens<double> tokens(16, 3);
  moe::Batch<double, Space> batch;
  batch.x = tokens.x;
  moe::Context<Space> ctx;
  moe::MixtureOfDepths<Tanh>::Tape tape;
  layer.forward(ctx, batch, tape);
  CHECK(tape.rows.tokens() == 4);
  CHECK_FALSE(tape.rows.mask.is_allocated());
  CHECK_FALSE(tape.rows.sequence_offsets.is_allocated());
  CHECK(list(tape.rows.positions) == ones(tape.chosen));
}

TEST_CASE("A mixture of depths takes no tokens, nothing but padding, and all of them") {
  using Layer = moe::MixtureOfDepths<MoE, moe::ChoiceCrossEntropy, moe::DepthPredictor>;
  Layer layer({.block = moe_config}, moe::Seed{3});
  check_empty(layer);
  moe::Context<Space> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients();
  std::vector<Index> all(10);
  for (Index t = 0; t < 10; ++t) all[t] = t;
  const Tokens<double> masked(10, 7, all);
  for (bool training : {true, false}) {
    ctx.training = training;
    CHECK(same_bits(layer.forward(ctx, masked.batch, tape), masked.x));
    CHECK(tape.loss() == 0);
    CHECK(same_bits(layer.backward(ctx, masked.dy, tape, gradients), masked.dy));
  }
  auto zero = [](std::string_view, auto& gradient) { CHECK(largest(gradient) == 0); };
  Layer::Parameters::visit(zero, static_cast<Layer::Parameters&>(gradients));

  // With a capacity of 1 and r = 1 it is the dense residual layer.
  using Router = moe::Router<moe::Identity, moe::ExpertChoice, moe::ConstantWeight>;
  moe::MixtureOfDepths<MoE, Router> dense({.block = moe_config, .capacity = 1}, moe::Seed{9});
  moe::Residual<MoE> residual(moe_config, moe::Seed{9});
  const Tokens<double> tokens(10, 7, {4});
  decltype(dense)::Tape dense_tape;
  ctx.training = true;
  moe::Residual<MoE>::Tape residual_tape;
  auto dense_gradients = dense.gradients();
  auto residual_gradients = residual.gradients();
  CHECK(same_bits(dense.forward(ctx, tokens.batch, dense_tape), residual.forward(ctx, tokens.batch, residual_tape)));
  const auto dx = residual.backward(ctx, tokens.dy, residual_tape, residual_gradients);
  const auto value = [&] {
    const auto y = residual.forward(ctx, tokens.batch);
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += y.data()[i] * tokens.dy.data()[i];
    return sum;
  };
  check_gradient(tokens.x, clone(dx), value);
  CHECK(same_bits(dense.backward(ctx, tokens.dy, dense_tape, dense_gradients), dx));
  CHECK(same_bits(dense_gradients.block.experts.down, residual_gradients.experts.down));
}

/// y, dx and all gradients of a step on `On`, one behind the other: in training, and by a causal rule.
template <class On, class T>
std::vector<double> everything(DepthChoice rule) {
  using Experts = moe::MoELayer<moe::On<On>, moe::Precision<T>, moe::Router<moe::Softmax, moe::TopK<2>>>;
  using Layer = moe::MixtureOfDepths<Experts, moe::ChoiceCrossEntropy, moe::DepthPredictor>;
  Layer layer({.block = {.hidden = 40, .intermediate = 24, .experts = 5}, .capacity = 0.3}, moe::Seed{3});
  using M = moe::Matrix<T, On>;
  const auto x = random<M>(1, 70, 40), dy = random<M>(2, 70, 40);
  moe::Vector<std::uint8_t, On> mask("mask", 70);
  const auto host_mask = Kokkos::create_mirror_view(mask);
  for (Index t = 0; t < 70; ++t) host_mask(t) = t % 9 != 4;
  Kokkos::deep_copy(mask, host_mask);
  moe::Batch<T, On> batch;
  batch.x = x;
  batch.mask = mask;
  batch.sequence_offsets = indices<On>({0, 31, 31, 70});
  moe::Context<On> ctx;
  ctx.training = rule == DepthChoice::top_k;
  layer.inference = rule;
  typename Layer::Tape tape;
  auto gradients = layer.gradients();
  std::vector<double> result;
  auto keep = [&](std::string_view, const auto& view) {
    const auto values = host(view);
    for (std::size_t i = 0; i < values.size(); ++i) result.push_back(double(values.data()[i]));
  };
  keep("y", layer.forward(ctx, batch, tape));
  keep("chosen", tape.chosen);
  keep("dx", layer.backward(ctx, dy, tape, gradients));
  result.push_back(tape.loss());
  Layer::Parameters::visit(keep, static_cast<typename Layer::Parameters&>(gradients));
  return result;
}

TEMPLATE_LIST_TEST_CASE("A mixture of depths does the same on every backend and in every precision", "", Cases) {
  for (DepthChoice rule : {DepthChoice::top_k, DepthChoice::router, DepthChoice::predictor}) {
    const auto got = everything<typename TestType::Space, typename TestType::T>(rule);
    const auto expected = everything<Space, double>(rule);
    REQUIRE(got.size() == expected.size());
    double worst = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double error = std::abs(got[i] - expected[i]) / (1 + std::abs(expected[i]));
      worst = error <= worst ? worst : error;
    }
    CHECK(worst < 10 * tolerance<typename TestType::T>(70));
  }
}

TEST_CASE("A mixture of depths keeps its router and predictor in f32 around a block in bf16") {
  using Experts = moe::MoELayer<moe::On<Space>, moe::Precision<moe::bfloat16, float>>;
  using Layer = moe::MixtureOfDepths<Experts, moe::ChoiceCrossEntropy, moe::DepthPredictor>;
  static_assert(std::is_same_v<decltype(Layer::Parameters::predictor.weight)::value_type, float>);
  Layer layer({.block = {.hidden = 16, .intermediate = 8, .experts = 4}, .capacity = 0.25}, moe::Seed{3});
  const auto x = random<moe::Matrix<moe::bfloat16, Space>>(1, 40, 16);
  moe::Context<Space> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients();
  const auto y = layer.forward(ctx, x, tape);
  const auto dx = layer.backward(ctx, x, tape, gradients);
  CHECK(ones(tape.chosen).size() == 10);
  for (Index t = 0; t < 40; ++t) {
    for (Index h = 0; h < 16; ++h) {
      CHECK((tape.chosen(t) != 0 || float(y(t, h)) == float(x(t, h))));
      CHECK(std::abs(float(dx(t, h))) < 10);  // NaN is not
    }
  }
  CHECK(largest(gradients.predictor.first) > 1e-4);
  CHECK(largest(gradients.router.weight) > 1e-4);
}

TEST_CASE("Mixtures of depths say what does not fit") {
  using Layer = moe::MixtureOfDepths<Tanh, moe::ChoiceCrossEntropy>;
  for (double capacity : {0.0, -1.0, 1.5}) {
    CHECK_THROWS_WITH((Layer({.block = {.hidden = 3}, .capacity = capacity})), Contains("capacity is"));
  }
  CHECK_THROWS_WITH((Layer({.block = {.hidden = 3}, .hidden = 4})), Contains("the block's is 3"));
  Layer layer({.block = {.hidden = 3}}), other({.block = {.hidden = 3}});
  moe::Context<Space> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients(), foreign = other.gradients();
  const Tokens<double> tokens(6, 3), wide(6, 4);
  CHECK_THROWS_WITH(layer.backward(ctx, tokens.dy, tape, gradients), Contains("is empty"));
  CHECK_THROWS_WITH(layer.forward(ctx, wide.batch, tape), Contains("hidden is 3"));
  layer.forward(ctx, tokens.batch, tape);
  CHECK_THROWS_WITH(layer.backward(ctx, wide.dy, tape, gradients), Contains("expected (6, 3)"));
  CHECK_THROWS_WITH(layer.backward(ctx, tokens.dy, tape, foreign), Contains("another layer"));
  CHECK_THROWS_WITH(other.backward(ctx, tokens.dy, tape, foreign), Contains("another layer"));
  auto batch = tokens.batch;
  batch.positions = indices<Space>({0, 1});
  CHECK_THROWS_WITH(layer.forward(ctx, batch, tape), Contains("2 positions for 6 tokens"));
  batch = tokens.batch;
  batch.branch_input = tokens.x;
  CHECK_THROWS_WITH(layer.forward(ctx, batch, tape), Contains("branch_input"));
  layer.parameters.router.weight(0, 0) = std::nan("");
  if (!moe::detail::device_path<Space>) {
    CHECK_THROWS_AS(layer.forward(ctx, tokens.batch, tape), moe::DataError);
  } else {
    layer.forward(ctx, tokens.batch, tape);
    CHECK_THROWS_AS(ctx.check(), moe::DataError);
  }
}

}  // namespace mixture_of_depths_test
