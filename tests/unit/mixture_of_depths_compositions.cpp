// What a mixture of depths is composed with: experts, layers in which tokens leave early, others of its kind,
// optimisers, and graphs.
#include "moe_test/blocks.hpp"
#include "moe_test/layers.hpp"

namespace mixture_of_depths_compositions_test {

using namespace moe_test;
using Catch::Matchers::Contains;
using Space = Kokkos::DefaultHostExecutionSpace;
using Tanh = TanhBlock<double>;
using Mean = MeanBlock<double>;

Index total(const moe::Vector<std::uint8_t, Space>& marks) {
  Index sum = 0;
  for (std::size_t t = 0; t < marks.size(); ++t) sum += marks(t);
  return sum;
}

// ------------------------------------------------------------------------------------------------------------ experts

using MoE = HostLayer<double, moe::Router<moe::Softmax, moe::TopK<2>>, moe::SwitchBalanceLoss>;
const moe::MoEConfig moe_config{.hidden = 6, .intermediate = 5, .experts = 4};

TEST_CASE("Staged mixtures of depths and experts give the chosen tokens what the experts give them") {
  using Layer = moe::StagedMoDE<MoE>;
  Layer layer({.block = moe_config, .capacity = 0.5}, MoE(moe_config, moe::Seed{8}), moe::Seed{3});
  const MoE experts(moe_config, moe::Seed{8});
  const Tokens<double> tokens(24, 6, {7});
  moe::Context<Space> ctx;
  Layer::Tape tape;
  const auto y = layer.forward(ctx, tokens.batch, tape);
  const auto update = experts.forward(ctx, tokens.batch);
  for (Index t = 0; t < 24; ++t) {
    const double r = tape.chosen(t) != 0 ? tape.routing.logits(t, 0) : 0;
    for (Index h = 0; h < 6; ++h) CHECK(y(t, h) == Approx(tokens.x(t, h) + r * update(t, h)).margin(1e-12));
  }
  CHECK(tape.loss() == tape.block.loss());
  CHECK(moe::load_report(tape.block).tokens >= total(tape.chosen));
  CHECK(moe::load_report(tape.block).assignments() == 2 * total(tape.chosen));
}

TEST_CASE("Integrated mixtures of depths and experts send tokens to experts that compute nothing") {
  using Layer = moe::Residual<moe::IntegratedMoDE<4, moe::On<Space>, moe::Precision<double>>>;
  Layer layer({.hidden = 6, .intermediate = 5, .experts = 6}, moe::Seed{8});
  CHECK(layer.parameters.experts.down.extent(0) == 2);
  const Tokens<double> tokens(60, 6);
  moe::Batch<double, Space> batch;
  batch.x = tokens.x;
  moe::Context<Space> ctx;
  Layer::Tape tape;
  const auto y = layer.forward(ctx, batch, tape);
  const auto& a = tape.block.routing.assignments;
  Index idle = 0;
  for (Index t = 0; t < 60; ++t) {
    bool computed = false;
    for (Index i = a.begin(t); i < a.end(t); ++i) computed = computed || a.expert(i) < 2;
    bool same = true;
    for (Index h = 0; h < 6; ++h) same = same && y(t, h) == tokens.x(t, h);
    CHECK(same != computed);
    idle += same;
  }
  CHECK((idle >= 20 && idle < 60));
  CHECK(moe::load_report(tape.block).routed == std::vector<Index>(6, 20));  // null experts take their share
}

// --------------------------------------------------------------------------------------------------------- early exit

TEST_CASE("In an early exit each layer's tokens are some of the last one's") {
  using Layer = moe::MixtureOfDepths<Tanh>;
  Layer layers[] = {Layer({.block = {.hidden = 6}, .capacity = 0.5}, moe::Seed{1}),
                    Layer({.block = {.hidden = 6}, .capacity = 0.5}, moe::Seed{2}),
                    Layer({.block = {.hidden = 6}, .capacity = 0.5}, moe::Seed{3})};
  Layer::Tape tapes[3];
  const Tokens<double> tokens(64, 6);
  moe::Context<Space> ctx;
  moe::Batch<double, Space> batch = tokens.batch;
  batch.sequence_offsets = indices<Space>({0, 32, 64});
  for (int i = 0; i < 3; ++i) {
    batch.x = layers[i].forward(ctx, batch, tapes[i]);
    batch.mask = tapes[i].chosen;
  }
  CHECK(total(tapes[0].chosen) == 32);
  CHECK(total(tapes[1].chosen) == 16);
  CHECK(total(tapes[2].chosen) == 8);
  for (Index t = 0; t < 64; ++t) {
    CHECK(tapes[1].chosen(t) <= tapes[0].chosen(t));
    CHECK(tapes[2].chosen(t) <= tapes[1].chosen(t));
    for (Index h = 0; h < 6; ++h) {
      if (tapes[0].chosen(t) == 0) CHECK(tapes[2].y(t, h) == tokens.x(t, h));
      if (tapes[1].chosen(t) == 0) CHECK(tapes[2].y(t, h) == tapes[0].y(t, h));
    }
  }
}

TEST_CASE("Tokens leave early in generation as they do in the whole sequence, if positions are given") {
  using Layer = moe::MixtureOfDepths<Mean, moe::ChoiceCrossEntropy>;
  Layer first({.block = {.hidden = 4}}, moe::Seed{6}), second({.block = {.hidden = 4}}, moe::Seed{8});
  const Tokens<double> tokens(24, 4);
  moe::Context<Space> ctx;
  ctx.training = false;
  moe::Batch<double, Space> batch;
  Layer::Tape first_tape, second_tape;
  batch.x = tokens.x;
  batch.x = first.forward(ctx, batch, first_tape);
  batch.mask = first_tape.chosen;
  const auto expected = clone(second.forward(ctx, batch, second_tape));
  CHECK(total(second_tape.chosen) < total(first_tape.chosen));
  auto first_cache = first.cache(1, 24), second_cache = second.cache(1, 24);
  for (Index t = 0; t < 24; ++t) {
    moe::Matrix<double, Space> x("x", 1, 4);
    for (Index h = 0; h < 4; ++h) x(0, h) = tokens.x(t, h);
    batch = {};
    batch.x = x;
    batch.positions = indices<Space>({t});
    batch.x = first.forward(ctx, batch, first_cache);
    batch.mask = first_cache.chosen;
    const auto y = second.forward(ctx, batch, second_cache);
    for (Index h = 0; h < 4; ++h) CHECK(y(0, h) == Approx(expected(t, h)).margin(1e-13));
  }
}

// -------------------------------------------------------------------------------------------- as a part among the
// others

static_assert(moe::LayerBlock<MoE> && !moe::CachedBlock<MoE>);
static_assert(moe::LayerBlock<moe::MixtureOfDepths<MoE>> && moe::CachedBlock<moe::MixtureOfDepths<MoE>>);
static_assert(moe::LayerBlock<moe::Residual<Tanh>> && moe::CachedBlock<moe::Residual<Mean>>);
static_assert(!moe::LayerBlock<moe::Softmax> && !moe::LayerBlock<int>);

TEST_CASE("A mixture of depths inside another passes the gradient check") {
  using Inner = moe::MixtureOfDepths<Tanh, moe::ChoiceCrossEntropy>;
  using Layer = moe::MixtureOfDepths<Inner, moe::ChoiceCrossEntropy>;
  Layer layer({.block = {.block = {.hidden = 5}, .capacity = 0.5}, .capacity = 0.6}, moe::ChoiceCrossEntropy{0.5},
              moe::Seed{3});
  layer.block().get<moe::ChoiceCrossEntropy>().coefficient = 0.7;
  CHECK(layer.config().hidden == 5);
  check_layer(layer, Tokens<double>(24, 5, {4}), true);
}

TEST_CASE("Optimisers step the block's own arrays, also where the layer was moved") {
  using Layer = moe::MixtureOfDepths<MoE, moe::DepthPredictor>;
  Layer made({.block = moe_config, .capacity = 0.5}, moe::Seed{3});
  Layer layer(std::move(made));
  std::vector<std::string> names;
  layer.visit([&](const moe::ParameterInfo& info, const auto&) { names.push_back(info.name); });
  CHECK(names == std::vector<std::string>{"router.weight", "predictor.first.weight", "predictor.first.bias",
                                          "predictor.weight", "predictor.bias", "block.router.weight",
                                          "block.experts.gate_up_proj", "block.experts.down_proj"});
  CHECK(!same_bits(layer.parameters.router.weight,  // seeds give the block's router other numbers
                   moe::Matrix<double, Space>(layer.parameters.block.router.weight.data(), 1, 6)));
  const Tokens<double> tokens(24, 6);
  moe::Context<Space> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients();
  moe::AdamW optimizer(layer.parameters);
  const auto before = clone(layer.block().parameters.experts.down);
  layer.forward(ctx, tokens.batch, tape);
  layer.backward(ctx, tokens.dy, tape, gradients);
  optimizer.step(ctx, layer.parameters, gradients, 1e-2);
  CHECK(layer.block().parameters.experts.down.data() == layer.parameters.block.experts.down.data());
  CHECK(!same_bits(layer.block().parameters.experts.down, before));
  moe::zero(ctx, static_cast<Layer::Parameters&>(gradients));
  CHECK(largest(gradients.of_block.experts.down) == 0);
}

// ------------------------------------------------------------------------------------------------------------ capture

TEST_CASE("Mixtures of depths refuse to be captured before they have run") {
  using Layer = moe::MixtureOfDepths<Tanh, moe::ChoiceCrossEntropy>;
  Layer layer({.block = {.hidden = 3}});
  const Tokens<double> tokens(6, 3);
  moe::Context<Space> ctx;
  Layer::Tape tape;
  moe::DepthStatistics<Space> statistics;
  struct Capture {
    Capture() { moe::detail::pretend_capture = true; }
    ~Capture() { moe::detail::pretend_capture = false; }
  };
  const auto refused = [&](const auto& f, const std::string& words) {
    const Capture capture;
    CHECK_THROWS_WITH(f(), Contains("captured in a graph") && Contains(words));
  };
  refused([&] { layer.forward(ctx, tokens.batch, tape); }, "on 6 tokens, so it has to allocate");
  auto gradients = layer.gradients();
  layer.forward(ctx, tokens.batch, tape);
  refused([&] { layer.backward(ctx, tokens.dy, tape, gradients); }, "moe::MixtureOfDepths::backward");
  refused([&] { statistics.add(tape); }, "Add once before capturing");
  refused([&] { tape.loss(); }, "Reading a tape's loss");
  statistics.add(tape);
  refused([&] { statistics.report(); }, "moe::DepthStatistics::report");
}

TEST_CASE("A second step of a mixture of depths is not refused on devices") {
  if (!moe::detail::device_path<Space>) return;
  using Layer = moe::StagedMoDE<MoE, moe::ChoiceCrossEntropy, moe::DepthPredictor>;
  Layer layer({.block = moe_config});
  const Tokens<double> tokens(24, 6, {7});
  moe::Context<Space> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients();
  moe::DepthStatistics<Space> statistics;
  const auto step = [&] {
    layer.forward(ctx, tokens.batch, tape);
    layer.backward(ctx, tokens.dy, tape, gradients);
    statistics.add(tape);
  };
  step();
  step();
  moe::detail::pretend_capture = true;
  CHECK_NOTHROW(step());
  moe::detail::pretend_capture = false;
}

}  // namespace mixture_of_depths_compositions_test
