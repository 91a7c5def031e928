// What surrounds router and experts: input maps, latent spaces, weights on inputs, outputs, wrapped experts and clamped
// activations. Each in a whole layer: gradients in double, float beside double, no tokens at all.
#include "moe_test/layers.hpp"

namespace layer_parts_test {

using namespace moe_test;
using Space = Kokkos::DefaultHostExecutionSpace;
using M = moe::Matrix<double, Space>;

constexpr Index token_count = 9, hidden = 5, experts = 4;
const moe::MoEConfig config{.hidden = hidden, .intermediate = 3, .experts = experts};
const std::vector<Index> padding{1, 4, 8};

using Router = moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum>;
using FFN = moe::ExpertFFN<moe::SwiGLU>;

template <class View>
bool finite(const View& view) {
  return std::all_of(view.data(), view.data() + view.size(), [](double value) { return std::isfinite(value); });
}

/// Is float's result double's, but for rounding?
template <class A, class B>
void check_close(const A& got, const B& expected) {
  REQUIRE(got.size() == expected.size());
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i)
    worst = std::max(worst, std::abs(double(got.data()[i]) - expected.data()[i]));
  CHECK(finite(got));
  CHECK(worst < 2e-5 * (1 + largest(expected)));
}

/// y, dx and the gradients of one pass, training.
template <class Layer, class Tape, class Gradients>
void pass(Layer& layer, Tape& tape, Gradients& gradients) {
  using T = typename Layer::Scalar;
  moe::Context<Space> ctx;
  const Tokens<T> tokens(token_count, hidden, padding);
  layer.forward(ctx, tokens.batch, tape);
  layer.backward(ctx, tokens.dy, tape, gradients);
}

/// Checks a layer with these policies and values.
template <class... Policies, class... Values>
void check_part(const Values&... values) {
  using Wide = HostLayer<double, Router, Policies...>;
  using Narrow = HostLayer<float, Router, Policies...>;
  Wide wide(config, values..., moe::Seed{3});
  Narrow narrow(config, values..., moe::Seed{3});
  check_layer(wide, Tokens<double>(token_count, hidden, padding), true);
  check_empty(wide);

  copy_parameters(wide, narrow);
  typename Wide::Tape wide_tape;
  typename Narrow::Tape narrow_tape;
  auto wide_gradients = wide.gradients();
  auto narrow_gradients = narrow.gradients();
  pass(wide, wide_tape, wide_gradients);
  pass(narrow, narrow_tape, narrow_gradients);
  check_close(narrow_tape.y, wide_tape.y);
  check_close(narrow_tape.dx, wide_tape.dx);
  auto compare = [](std::string_view name, auto& a, auto& b) {
    CAPTURE(std::string(name));
    check_close(a, b);
  };
  Narrow::Parameters::visit(compare, narrow_gradients, wide_gradients);
  for (Index t : padding) {
    for (Index h = 0; h < hidden; ++h) CHECK(wide_tape.y(t, h) == 0);
  }
}

/// y of a layer whose parameters are those of a fresh layer with seed 3, moved away from 0 and 1.
template <class Layer, class... Values>
M output(typename Layer::Tape& tape, const Values&... values) {
  Layer layer(config, values..., moe::Seed{3});
  vary_vectors(layer.parameters);
  moe::Context<Space> ctx;
  return layer.forward(ctx, Tokens<double>(token_count, hidden, padding).batch, tape);
}

template <class... Policies>
using LayerOf = HostLayer<double, Router, Policies...>;

M plain_output() {
  LayerOf<FFN>::Tape tape;
  return output<LayerOf<FFN>>(tape);
}

// -------------------------------------------------------------------------------------------------------------- input

TEST_CASE("Jitter of the layer's input reaches router, experts and branches") {
  check_part<FFN, moe::InputJitter, moe::SharedExperts<1>>(moe::InputJitter{0.3});
}

TEST_CASE("Jitter of the input beside the router's own draws apart") {
  using Layer = HostLayer<double, moe::Router<moe::BiasedLogits, moe::Jitter>, FFN, moe::InputJitter>;
  Layer layer(config, moe::Router<moe::BiasedLogits, moe::Jitter>{moe::Jitter{0.3}}, moe::InputJitter{0.3});
  check_layer(layer, Tokens<double>(token_count, hidden, padding), true);
  for (Index e = 0; e < experts; ++e) {  // logits are the router's input
    layer.parameters.router.bias(e) = 0;
    for (Index h = 0; h < hidden; ++h) layer.parameters.router.weight(e, h) = e == h;
  }
  moe::Context<Space> ctx;
  Layer::Tape tape;
  const Tokens<double> tokens(token_count, hidden);
  layer.forward(ctx, tokens.batch, tape);
  for (Index e = 0; e < experts; ++e) {
    const double first = tape.mapped(0, e) / tokens.x(0, e), second = tape.routing.logits(0, e) / tape.mapped(0, e);
    CHECK(std::abs(first - 1) <= 0.3);
    CHECK(std::abs(second - 1) <= 0.3);
    CHECK(std::abs(first - second) > 1e-3);
  }
  ctx.training = false;
  layer.forward(ctx, tokens.batch, tape);
  for (Index e = 0; e < experts; ++e) CHECK(tape.routing.logits(0, e) == tokens.x(0, e));
}

TEST_CASE("Two jittered microbatches in flight each replay their own draws") {
  using Layer = LayerOf<FFN, moe::InputJitter>;
  Layer layer(config, moe::InputJitter{0.3}, moe::Seed{3});
  const Tokens<double> tokens(token_count, hidden);
  const auto pass = [&](bool in_flight) {
    moe::Context<Space> ctx;
    auto gradients = layer.gradients();
    Layer::Tape tapes[2];
    std::vector<M> dx;
    for (Index i = 0; i < 2; ++i) {
      ctx.first_token = i * token_count;
      layer.forward(ctx, tokens.batch, tapes[i]);
      if (!in_flight) dx.push_back(layer.backward(ctx, tokens.dy, tapes[i], gradients));
    }
    for (Index i = 0; i < 2 && in_flight; ++i) dx.push_back(layer.backward(ctx, tokens.dy, tapes[i], gradients));
    CHECK_FALSE(same_bits(dx[0], dx[1]));
    return dx[0];
  };
  CHECK(same_bits(pass(true), pass(false)));
}

// -------------------------------------------------------------------------------------------------- latent and weights

TEST_CASE("Experts in a latent space pass the gradient check") {
  check_part<FFN, moe::Latent<>, moe::SharedExperts<1>>(moe::Latent<>{.width = 3});
}

TEST_CASE("Experts in a normed latent space pass the gradient check") {
  check_part<FFN, moe::Latent<moe::OffsetRmsNorm>>(moe::Latent<moe::OffsetRmsNorm>{.width = 3});
}

TEST_CASE("A latent space without a width is refused") {
  CHECK_THROWS_AS((LayerOf<FFN, moe::Latent<>>(config)), moe::ConfigError);
}

TEST_CASE("Weights on the input pass the gradient check") {
  check_part<moe::ExpertFFN<moe::SwiGLU, moe::Bias>, moe::WeightOnInput>();
}

TEST_CASE("Weights on the input pass the gradient check with drops, padded rows and a latent space") {
  using Latent = moe::Latent<moe::OffsetRmsNorm>;
  moe::CapacityPolicy<moe::Drop> drop;
  drop.factor = 0.7;
  drop.renormalize = moe::Renormalize::after_drops;
  check_part<FFN, moe::WeightOnInput, moe::CapacityPolicy<moe::Drop>>(drop);
  check_part<FFN, moe::WeightOnInput, moe::CapacityPolicy<moe::Drop>, Latent>(drop, Latent{.width = 3});
  moe::CapacityPolicy<moe::Pad> pad;
  pad.factor = 1.5;
  check_part<moe::ExpertFFN<moe::SwiGLU, moe::Bias>, moe::WeightOnInput, moe::CapacityPolicy<moe::Pad>>(pad);
}

TEST_CASE("Before linear experts weights on the input are weights on the output") {
  using Linear = moe::ExpertFFN<moe::Linear>;
  LayerOf<Linear>::Tape after;
  LayerOf<Linear, moe::WeightOnInput>::Tape before;
  const M y = output<LayerOf<Linear>>(after);
  check_close(output<LayerOf<Linear, moe::WeightOnInput>>(before), y);
  LayerOf<FFN, moe::WeightOnInput>::Tape other;
  const M bent = output<LayerOf<FFN, moe::WeightOnInput>>(other), plain = plain_output();
  CHECK(std::abs(bent(0, 0) - plain(0, 0)) > 1e-3);
}

// ------------------------------------------------------------------------------------------------------------- outputs

TEST_CASE("Scales of the routed part and of the whole pass the gradient check") {
  check_part<FFN, moe::RoutedScale, moe::SharedExperts<1>>(moe::RoutedScale{1.7});
  check_part<FFN, moe::LayerScale, moe::SharedExperts<1>>(moe::LayerScale{0.6});
}

TEST_CASE("A scale of the routed part leaves branches alone, a scale of the whole does not") {
  using Shared = moe::SharedExperts<1>;
  LayerOf<FFN, Shared>::Tape a;
  LayerOf<FFN, Shared, moe::RoutedScale>::Tape b;
  LayerOf<FFN, Shared, moe::LayerScale>::Tape c;
  const M routed = plain_output(), both = output<LayerOf<FFN, Shared>>(a);
  const M first = output<LayerOf<FFN, Shared, moe::RoutedScale>>(b, moe::RoutedScale{3});
  const M second = output<LayerOf<FFN, Shared, moe::LayerScale>>(c, moe::LayerScale{3});
  for (Index h = 0; h < hidden; ++h) {
    CHECK(first(0, h) == Approx(both(0, h) + 2 * routed(0, h)));
    CHECK(second(0, h) == Approx(3 * both(0, h)));
  }
}

TEST_CASE("A bias of the output passes the gradient check, and padding gets none") {
  check_part<FFN, moe::OutputBias>();
}

TEST_CASE("A norm of the output passes the gradient check") {
  check_part<FFN, moe::OutputNorm>(moe::OutputNorm{.epsilon = 1e-3});
}

TEST_CASE("A norm of the output gives unit root mean square") {
  using Layer = LayerOf<FFN, moe::OutputNorm>;
  Layer layer(config, moe::OutputNorm{.epsilon = 0}, moe::Seed{3});
  moe::Context<Space> ctx;
  Layer::Tape tape;
  const M y = layer.forward(ctx, Tokens<double>(token_count, hidden).batch, tape);
  for (Index t = 0; t < token_count; ++t) {
    double squares = 0;
    for (Index h = 0; h < hidden; ++h) squares += y(t, h) * y(t, h);
    CHECK(squares == Approx(hidden));
  }
}

TEST_CASE("Several outputs act in order around shared experts") {
  check_part<FFN, moe::OutputBias, moe::RoutedScale, moe::OutputNorm, moe::SharedExperts<1>, moe::LayerScale>(
      moe::RoutedScale{1.7}, moe::OutputNorm{.epsilon = 1e-2}, moe::LayerScale{0.6});
  check_part<FFN, moe::OutputNorm, moe::OutputBias, moe::Latent<>, moe::RoutedScale>(moe::RoutedScale{-0.5},
                                                                                     moe::Latent<>{.width = 3});
}

// ------------------------------------------------------------------------------------------------------------- experts

template <class Output>
using Extra = moe::WithExtraExperts<FFN, 2, Output>;

TEST_CASE("Extra experts that give their input, or nothing, pass the gradient check") {
  check_part<Extra<moe::IdentityOutput>>();
  check_part<Extra<moe::NullOutput>>();
  moe::CapacityPolicy<moe::Pad> pad;
  check_part<Extra<moe::IdentityOutput>, moe::CapacityPolicy<moe::Pad>>(pad);
  check_part<Extra<moe::IdentityOutput>, moe::WeightOnInput>();
}

TEST_CASE("Extra experts add their input times the weight, or nothing") {
  LayerOf<Extra<moe::IdentityOutput>>::Tape a;
  LayerOf<Extra<moe::NullOutput>>::Tape b;
  const M with = output<LayerOf<Extra<moe::IdentityOutput>>>(a), without = output<LayerOf<Extra<moe::NullOutput>>>(b);
  const Tokens<double> tokens(token_count, hidden, padding);
  double most = 0;
  for (Index t = 0; t < token_count; ++t) {
    double weight = 0;
    for (Index i = 2 * t; i < 2 * t + 2; ++i)
      weight += a.routing.assignments.expert(i) >= experts - 2 ? a.routing.assignments.weight(i) : 0;
    for (Index h = 0; h < hidden; ++h) CHECK(with(t, h) == Approx(without(t, h) + weight * tokens.x(t, h)));
    most = std::max(most, weight);
  }
  CHECK(most == Approx(1));  // some token has extra experts alone
  CHECK_THROWS_AS((LayerOf<moe::WithExtraExperts<FFN, 4>>(config)), moe::ConfigError);
}

template <class Norm>
using Normed = moe::NormalizedExperts<FFN, Norm>;

TEST_CASE("Normed experts pass the gradient check") {
  check_part<Normed<moe::UnitLength>>(Normed<moe::UnitLength>{.epsilon = 1e-3});
  check_part<Normed<moe::ScaledUnitRms>>(Normed<moe::ScaledUnitRms>{.epsilon = 1e-3});
  using Both = moe::NormalizedExperts<Extra<moe::IdentityOutput>, moe::ScaledUnitRms>;
  check_part<Both, moe::CapacityPolicy<moe::Pad>>(Both{.epsilon = 1e-3});
}

/// The squared lengths of all rows that experts gave.
template <class Norm>
void check_lengths(double expected) {
  typename LayerOf<Normed<Norm>>::Tape tape;
  output<LayerOf<Normed<Norm>>>(tape, Normed<Norm>{.epsilon = 0});
  REQUIRE(tape.plan.expert_offsets(experts) == 2 * (token_count - Index(padding.size())));
  for (Index r = 0; r < tape.plan.expert_offsets(experts); ++r) {
    double squares = 0;
    for (Index h = 0; h < hidden; ++h) squares += tape.out(r, h) * tape.out(r, h);
    CHECK(squares == Approx(expected));
  }
}

TEST_CASE("Normed experts give vectors of unit length, or of unit root mean square") {
  check_lengths<moe::UnitLength>(1);
  check_lengths<moe::ScaledUnitRms>(hidden);
}

// --------------------------------------------------------------------------------------------------------- activations

/// Derivatives against differences, on a grid of gates and ups that holds no kink.
template <class Activation>
void check_slopes(const Activation& activation) {
  for (double gate : {-9.0, -1.51, -0.6, 0.2, 0.9, 1.49, 1.7, 8.0}) {
    for (double up : {-7.0, -1.51, -1.4, 0.3, 1.3, 1.6}) {
      CAPTURE(gate, up);
      const double h = 1e-6;
      double dgate, dup;
      activation.gradient(gate, up, dgate, dup);
      CHECK(dgate == Approx((activation.value(gate + h, up) - activation.value(gate - h, up)) / (2 * h)).margin(1e-8));
      CHECK(dup == Approx((activation.value(gate, up + h) - activation.value(gate, up - h)) / (2 * h)).margin(1e-8));
    }
  }
}

TEST_CASE("Slopes of clamped activations agree with differences on both sides of the clamps") {
  check_slopes(moe::ClampedSwiGLU{.limit = 1.5, .alpha = 1.3, .shift = 0.7});
  check_slopes(moe::SwiGLUClampedAfter{.limit = 1.2});
}

TEST_CASE("Clamped activations clamp where their models do") {
  const auto silu = [](double x) { return x / (1 + std::exp(-x)); };
  const moe::ClampedSwiGLU before;
  CHECK(before.value(9.0, -9.0) == Approx(silu(1.702 * 7) / 1.702 * (-7 + 1)));
  CHECK(before.value(-9.0, 2.0) == Approx(silu(1.702 * -9) / 1.702 * (2 + 1)));
  const moe::SwiGLUClampedAfter after;
  CHECK(after.value(9.0, 9.0) == Approx(7 * 7));
  CHECK(after.value(7.001, -9.0) == Approx(silu(7.001) * -7));
  CHECK(moe::SquaredReLU::value(3.0) == 9);
  CHECK(moe::SquaredReLU::value(-3.0) == 0);
}

TEST_CASE("Layers with clamped and squared activations pass the gradient check") {
  using Before = moe::ExpertFFN<moe::ClampedSwiGLU, moe::Bias>;
  check_part<Before>(Before{moe::ClampedSwiGLU{.limit = 0.45, .alpha = 1.3, .shift = 0.7}});
  using After = moe::ExpertFFN<moe::SwiGLUClampedAfter>;
  check_part<After>(After{moe::SwiGLUClampedAfter{.limit = 0.25}});
  check_part<moe::ExpertFFN<moe::SquaredReLU>>();
}

TEST_CASE("Shared experts take their activation's values") {
  using Shared = moe::SharedExperts<1, moe::ClampedSwiGLU>;
  check_part<FFN, Shared>(Shared{moe::ClampedSwiGLU{.limit = 0.45, .alpha = 1.3, .shift = 0.7}});
}

}  // namespace layer_parts_test
