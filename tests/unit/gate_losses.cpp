// Losses on gates: importance and load against their golden, the policy gradient against its equation, and the corners.
#include "moe_test/golden.hpp"
#include "moe_test/layers.hpp"

namespace gate_losses_test {

using namespace moe_test;
using Space = Kokkos::DefaultHostExecutionSpace;

constexpr Index token_count = 9, hidden = 4, experts = 5;
const moe::MoEConfig config{.hidden = hidden, .intermediate = 3, .experts = experts};

using Noisy = moe::Router<moe::NoisyLogits, moe::Identity, moe::TopK<2>, moe::SoftmaxOfChosen>;
using Plain = moe::Router<moe::Softmax, moe::TopK<2>>;
using Given = moe::Router<moe::GivenLogits, moe::TopK<1>>;

template <class To>
void copy(const moe::Matrix<float, Space>& from, const To& to) {
  std::copy(from.data(), from.data() + from.size(), to.data());
}

/// Are these the entries of a matrix whose golden is stored the other way round?
void check_transposed(const moe::Matrix<double, Space>& got, const moe::Matrix<float, Space>& expected) {
  for (std::size_t i = 0; i < got.extent(0); ++i) {
    for (std::size_t j = 0; j < got.extent(1); ++j) CHECK(got(i, j) == Approx(expected(j, i)).margin(1e-6));
  }
}

TEST_CASE("Noisy top-k gates, importance and load agree with their golden") {
  const GoldenFile golden("shazeer_noisy_topk");
  const auto x = golden.matrix<Space>("x"), gates = golden.matrix<Space>("gates");
  using Layer = HostLayer<double, Noisy, moe::ImportanceLoss, moe::LoadLoss>;
  Layer layer(moe::MoEConfig{.hidden = 6, .intermediate = 3, .experts = 5}, moe::ImportanceLoss{1}, moe::LoadLoss{1});
  const auto weight = golden.matrix<Space>("w_gate"), noise_weight = golden.matrix<Space>("w_noise");
  for (Index e = 0; e < 5; ++e) {
    for (Index h = 0; h < 6; ++h) {
      layer.parameters.router.weight(e, h) = weight(h, e);
      layer.parameters.router.noise_weight(e, h) = noise_weight(h, e);
    }
  }
  Tokens<double> tokens(9, 6);
  copy(x, tokens.x);
  tokens.batch.draws = golden.matrix<Space>("noise");
  Kokkos::deep_copy(tokens.dy, 0);
  moe::Context<Space> ctx;
  Layer::Tape tape;
  layer.forward(ctx, tokens.batch, tape);

  moe::Matrix<double, Space> dense("dense", 9, 5);
  const auto& a = tape.routing.assignments;
  for (Index i = 0; i < a.bound; ++i) dense(i / 2, a.expert(i)) = a.weight(i);
  for (std::size_t i = 0; i < dense.size(); ++i) CHECK(dense.data()[i] == Approx(gates.data()[i]).margin(1e-6));
  const auto values = tape.loss_values();
  CHECK(values[0] == Approx(golden.file.read<float>("loss_importance")[0]));
  CHECK(values[1] == Approx(golden.file.read<float>("loss_load")[0]));

  const auto gradients_of = [&](double importance, double load, const std::string& name) {
    layer.get<moe::ImportanceLoss>().coefficient = importance;
    layer.get<moe::LoadLoss>().coefficient = load;
    auto gradients = layer.gradients();
    layer.backward(ctx, tokens.dy, tape, gradients);
    CAPTURE(name);
    check_transposed(gradients.router.weight, golden.matrix<Space>("grad_" + name + "_w_gate"));
    check_transposed(gradients.router.noise_weight, golden.matrix<Space>("grad_" + name + "_w_noise"));
  };
  gradients_of(1, 0, "importance");
  gradients_of(0, 1, "load");
}

TEST_CASE("Importance passes the gradient check") {
  using Router = moe::Router<moe::Sigmoid, moe::TopK<2>, moe::PerExpertScale>;
  HostLayer<double, Router, moe::ImportanceLoss> layer(config, moe::ImportanceLoss{0.7}, moe::Seed{3});
  check_layer(layer, Tokens<double>(token_count, hidden, {0, 5}));
}

TEST_CASE("Load passes the gradient check through clean logits, deviations and thresholds") {
  HostLayer<double, Noisy, moe::LoadLoss> layer(config, moe::LoadLoss{3}, moe::Seed{3});
  check_layer(layer, Tokens<double>(token_count, hidden, {0, 5}), true);
}

TEST_CASE("The policy gradient passes the gradient check") {
  HostLayer<double, Plain, moe::ReinforceLoss> layer(config, moe::ReinforceLoss{.coefficient = 2, .baseline = 0.4},
                                                     moe::Seed{3});
  Tokens<double> tokens(token_count, hidden, {0, 5});
  tokens.batch.rewards = random<moe::Vector<float, Space>>(4, token_count);
  check_layer(layer, tokens);
}

/// The value of the first loss of a layer, and its gradient by given logits, with no gradient of y.
template <class Layer>
double run(Layer& layer, const moe::Batch<double, Space>& batch, moe::Matrix<double, Space>& dlogits) {
  moe::Context<Space> ctx;
  typename Layer::Tape tape;
  auto gradients = layer.gradients();
  layer.forward(ctx, batch, tape);
  layer.backward(ctx, moe::Matrix<double, Space>("dy", batch.tokens(), batch.hidden()), tape, gradients);
  dlogits = clone(tape.drouter_input);
  return tape.loss();
}

const moe::MoEConfig given_config{.hidden = hidden, .intermediate = 3, .experts = experts, .router_hidden = experts};

TEST_CASE("The policy gradient is its equation: the reward over the baseline pulls the first choice up") {
  HostLayer<double, Given, moe::ReinforceLoss> layer(given_config, moe::ReinforceLoss{.coefficient = 2, .baseline = 1});
  Tokens<double> tokens(token_count, hidden, {2, 6});
  tokens.give_router_input(experts);
  const auto rewards = random<moe::Vector<float, Space>>(4, token_count);
  tokens.batch.rewards = rewards;
  moe::Matrix<double, Space> dlogits;
  const double value = run(layer, tokens.batch, dlogits);
  double expected = 0;
  for (Index t = 0; t < token_count; ++t) {
    const bool live = t != 2 && t != 6;
    const double* z = &tokens.router_input(t, 0);
    const Index chosen = std::max_element(z, z + experts) - z;
    double total = 0;
    for (Index e = 0; e < experts; ++e) total += std::exp(z[e]);
    const double factor = live ? -2 * (rewards(t) - 1) / (token_count - 2) : 0;
    expected += factor * std::log(std::exp(z[chosen]) / total);
    for (Index e = 0; e < experts; ++e)
      CHECK(dlogits(t, e) == Approx(factor * ((e == chosen) - std::exp(z[e]) / total)).margin(1e-12));
  }
  CHECK(value == Approx(expected));
}

TEST_CASE("Rewards are read when backward runs, and must be there before") {
  using Layer = HostLayer<double, Given, moe::ReinforceLoss>;
  Layer layer(given_config);
  Tokens<double> tokens(token_count, hidden);
  tokens.give_router_input(experts);
  moe::Context<Space> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients();
  CHECK_THROWS_AS(layer.forward(ctx, tokens.batch, tape), moe::ShapeError);
  const moe::Vector<float, Space> rewards("rewards", token_count);
  tokens.batch.rewards = rewards;
  layer.forward(ctx, tokens.batch, tape);
  CHECK(tape.loss() == 0);
  Kokkos::deep_copy(tokens.dy, 0);
  Kokkos::deep_copy(rewards, 1);
  layer.evaluate_losses(ctx, tape);
  const double value = tape.loss();
  CHECK(value > 0);
  Layer::Tape again, empty;
  layer.forward(ctx, tokens.batch, again);
  CHECK(again.loss() == value);
  CHECK_THROWS_AS(layer.evaluate_losses(ctx, empty), moe::Error);
  layer.backward(ctx, tokens.dy, tape, gradients);
  CHECK(largest(tape.drouter_input) > 1e-3);
}

TEST_CASE("Importance and load cost nothing at balance, and E / K - 1 where K experts have all") {
  HostLayer<double, Given, moe::ImportanceLoss> layer(given_config, moe::ImportanceLoss{1});
  Tokens<double> tokens(2 * experts, hidden);
  tokens.give_router_input(experts);
  moe::Matrix<double, Space> dlogits;
  for (Index t = 0; t < 2 * experts; ++t) {
    for (Index e = 0; e < experts; ++e) tokens.router_input(t, e) = e == t % experts ? 2 : 0;
  }
  CHECK(run(layer, tokens.batch, dlogits) == Approx(0).margin(1e-12));
  CHECK(largest(dlogits) < 1e-12);
  for (Index t = 0; t < 2 * experts; ++t) tokens.router_input(t, 3) = 9;
  CHECK(run(layer, tokens.batch, dlogits) == Approx(experts - 1));

  HostLayer<double, Noisy, moe::LoadLoss> noisy(config, moe::LoadLoss{1});
  moe::Context<Space> ctx;
  HostLayer<double, Noisy, moe::LoadLoss>::Tape tape;
  Kokkos::deep_copy(noisy.parameters.router.weight, 0);
  Kokkos::deep_copy(noisy.parameters.router.noise_weight, 0);
  const Tokens<double> five(experts, hidden);
  moe::Matrix<float, Space> draws("draws", experts, experts);
  for (Index t = 0; t < experts; ++t) {
    for (Index e = 0; e < experts; ++e) draws(t, e) = float((t + e) % experts);  // a Latin square
  }
  auto batch = five.batch;
  batch.draws = draws;
  noisy.forward(ctx, batch, tape);
  CHECK(tape.loss() == Approx(0).margin(1e-12));

  Kokkos::deep_copy(five.x, 1);  // two experts far above the others
  for (Index h = 0; h < hidden; ++h)
    noisy.parameters.router.weight(0, h) = 100, noisy.parameters.router.weight(1, h) = 50;
  noisy.forward(ctx, batch, tape);
  CHECK(tape.loss() == Approx(double(experts) / 2 - 1));
}

TEST_CASE("Load wants trainable noise and a fixed number of choices, and is silent in evaluation") {
  moe::Context<Space> ctx;
  const Tokens<double> tokens(token_count, hidden);
  using Quiet = HostLayer<double, Plain, moe::LoadLoss>;
  Quiet::Tape quiet;
  CHECK_THROWS_AS(Quiet(config).forward(ctx, tokens.batch, quiet), moe::ConfigError);
  using Layer = HostLayer<double, Noisy, moe::LoadLoss>;
  Layer layer(config, moe::Seed{3});
  Layer::Tape tape;
  layer.forward(ctx, tokens.batch, tape);
  CHECK(tape.loss() > 0);
  ctx.training = false;
  layer.forward(ctx, tokens.batch, tape);
  CHECK(tape.loss() == 0);
}

TEST_CASE("Draws are given for every token, or not at all") {
  moe::Context<Space> ctx;
  Tokens<double> tokens(token_count, hidden);
  tokens.batch.draws = moe::Matrix<float, Space>("draws", token_count - 1, experts);
  HostLayer<double, Noisy>::Tape tape;
  CHECK_THROWS_AS((HostLayer<double, Noisy>(config).forward(ctx, tokens.batch, tape)), moe::ShapeError);
}

using All = HostLayer<double, Noisy, moe::ImportanceLoss, moe::LoadLoss, moe::ReinforceLoss>;

All with_all_losses() {
  return All(config, moe::ImportanceLoss{0.5}, moe::LoadLoss{0.7}, moe::ReinforceLoss{.baseline = 0.2}, moe::Seed{3});
}

TEST_CASE("Padding is in no gate loss") {
  const auto layer = with_all_losses();
  moe::Context<Space> ctx;
  Tokens<double> whole(token_count, hidden, {6, 7, 8});
  whole.batch.rewards = random<moe::Vector<float, Space>>(4, token_count);
  All::Tape padded, alone;
  layer.forward(ctx, whole.batch, padded);
  const Tokens<double> head(6, hidden);
  std::copy(whole.x.data(), whole.x.data() + head.x.size(), head.x.data());
  auto batch = head.batch;
  batch.rewards = random<moe::Vector<float, Space>>(4, 6);
  layer.forward(ctx, batch, alone);
  const auto a = padded.loss_values(), b = alone.loss_values();
  for (int i = 0; i < 3; ++i) CHECK(a[i] == Approx(b[i]));
}

TEST_CASE("No tokens cost nothing") {
  using Layer = HostLayer<double, Noisy, moe::ImportanceLoss, moe::LoadLoss>;
  Layer layer(config);
  check_empty(layer);
}

TEST_CASE("Two microbatches in flight draw apart and do not mix") {
  const auto layer = with_all_losses();
  Tokens<double> tokens(2 * token_count, hidden);
  const auto rewards = random<moe::Vector<float, Space>>(4, 2 * token_count);
  const auto half = [&](Index first) {
    const auto range = Kokkos::pair<Index, Index>(first, first + token_count);
    moe::Batch<double, Space> batch;
    batch.x = Kokkos::subview(tokens.x, range, Kokkos::ALL);
    batch.rewards = Kokkos::subview(rewards, range);
    return batch;
  };
  const auto dy = random<moe::Matrix<double, Space>>(2, token_count, hidden);
  const auto pass = [&](bool in_flight) {
    moe::Context<Space> ctx;
    auto gradients = layer.gradients();
    All::Tape tapes[2];
    for (int i = 0; i < 2; ++i) {
      ctx.first_token = i * token_count;
      layer.forward(ctx, half(i * token_count), tapes[i]);
      if (!in_flight) layer.backward(ctx, dy, tapes[i], gradients);
    }
    ctx.first_token = 1000;  // backward replays what forward drew
    for (int i = 0; i < 2 && in_flight; ++i) layer.backward(ctx, dy, tapes[i], gradients);
    CHECK_FALSE(same_bits(tapes[0].routing.logits, tapes[1].routing.logits));
    return clone(gradients.router.noise_weight);
  };
  CHECK(same_bits(pass(false), pass(true)));
  for (Index t = 0; t < token_count; ++t) {
    for (Index h = 0; h < hidden; ++h) tokens.x(t + token_count, h) = tokens.x(t, h);
  }
  pass(true);  // equal tokens, other noise
}

}  // namespace gate_losses_test
