// A mixture of depths in inference: causal rules, how often they agree, and generation with a cache.
#include <sstream>

#include "moe_test/blocks.hpp"
#include "moe_test/layers.hpp"

namespace mixture_of_depths_inference_test {

using namespace moe_test;
using Catch::Matchers::Contains;
using Space = Kokkos::DefaultHostExecutionSpace;
using Tanh = TanhBlock<double>;
using Mean = MeanBlock<double>;
using moe::DepthChoice;

/// A vector on the host, summed up.
Index total(const moe::Vector<std::uint8_t, Space>& marks) {
  Index sum = 0;
  for (std::size_t t = 0; t < marks.size(); ++t) sum += marks(t);
  return sum;
}

TEST_CASE("The default of inference is what the layer is trained for") {
  const moe::MixtureOfDepthsConfig<Tanh> config{.block = {.hidden = 3}};
  CHECK(moe::MixtureOfDepths<Tanh>(config).inference == DepthChoice::top_k);
  CHECK(moe::MixtureOfDepths<Tanh, moe::RouterZLoss>(config).inference == DepthChoice::top_k);
  CHECK(moe::MixtureOfDepths<Tanh, moe::ChoiceCrossEntropy>(config).inference == DepthChoice::router);
  CHECK(moe::MixtureOfDepths<Tanh, moe::DepthPredictor>(config).inference == DepthChoice::predictor);
  CHECK(moe::MixtureOfDepths<Tanh, moe::ChoiceCrossEntropy, moe::DepthPredictor>(config).inference ==
        DepthChoice::predictor);
}

TEST_CASE("Causal rules take the tokens with a positive logit and weigh them by r") {
  using Layer = moe::MixtureOfDepths<Tanh, moe::ChoiceCrossEntropy, moe::DepthPredictor>;
  Layer layer({.block = {.hidden = 6}, .capacity = 0.25}, moe::DepthPredictor{.width = 8}, moe::Seed{3});
  vary_vectors(layer.parameters);
  const Tokens<double> tokens(40, 6, {2, 30});
  moe::Context<Space> ctx;
  ctx.training = false;
  Layer::Tape tape, top;
  for (DepthChoice rule : {DepthChoice::router, DepthChoice::predictor}) {
    layer.inference = rule;
    const auto y = layer.forward(ctx, tokens.batch, tape);
    CHECK(tape.choice == rule);
    const auto& decides = rule == DepthChoice::router ? tape.routing.logits : tape.predictor_logits;
    Index taken = 0;
    for (Index t = 0; t < 40; ++t) {
      const bool chosen = decides(t, 0) > 0 && t != 2 && t != 30;
      CHECK((tape.chosen(t) != 0) == chosen);
      double expected[6];
      for (Index j = 0; j < 6; ++j) {
        double sum = 0;
        for (Index i = 0; i < 6; ++i) sum += tokens.x(t, i) * layer.parameters.block.weight(i, j);
        expected[j] = tokens.x(t, j) + (chosen ? tape.routing.logits(t, 0) * std::tanh(sum) : 0.0);
      }
      for (Index j = 0; j < 6; ++j) CHECK(y(t, j) == Approx(expected[j]).margin(1e-12));
      taken += chosen;
    }
    CHECK((taken > 4 && taken < 36));
    CHECK(tape.rows.tokens() == (moe::detail::device_path<Space> ? 40 : taken));
    CHECK(same_bits(layer.forward(ctx, tokens.batch), y));
  }
  ctx.training = true;  // whatever inference says
  layer.forward(ctx, tokens.batch, top);
  CHECK(top.choice == DepthChoice::top_k);
  CHECK(total(top.chosen) == 4 + 1 + 4);  // of 19, 1 and 18 tokens
}

TEST_CASE("A rule whose part is missing is an error that says what to add") {
  const Tokens<double> tokens(6, 3);
  moe::Context<Space> ctx;
  ctx.training = false;
  moe::MixtureOfDepths<Mean> layer({.block = {.hidden = 3}});
  CHECK_NOTHROW(layer.forward(ctx, tokens.batch));
  layer.inference = DepthChoice::router;
  CHECK_THROWS_WITH(layer.forward(ctx, tokens.batch), Contains("Add moe::ChoiceCrossEntropy"));
  layer.inference = DepthChoice::predictor;
  CHECK_THROWS_WITH(layer.forward(ctx, tokens.batch), Contains("Add moe::DepthPredictor"));
  ctx.training = true;
  CHECK_NOTHROW(layer.forward(ctx, tokens.batch));
}

TEST_CASE("Statistics count the tokens taken and how often the rules agree") {
  using Layer = moe::MixtureOfDepths<Tanh, moe::ChoiceCrossEntropy, moe::DepthPredictor>;
  Layer layer({.block = {.hidden = 6}, .capacity = 0.25}, moe::Seed{3});
  vary_vectors(layer.parameters);
  const Tokens<double> tokens(600, 6, {2, 30});
  moe::Context<Space> ctx;
  Layer::Tape tape;
  moe::DepthStatistics<Space> statistics;
  CHECK(statistics.report().tokens == 0);
  CHECK_THROWS_AS(statistics.add(tape), moe::Error);
  layer.forward(ctx, tokens.batch, tape);
  statistics.add(tape);
  statistics.add(tape);
  Index router[2] = {}, predictor[2] = {};  // predicted, agreed
  for (Index t = 0; t < 600; ++t) {
    if (t == 2 || t == 30) continue;
    const bool chosen = tape.chosen(t) != 0, r = tape.routing.logits(t, 0) > 0, p = tape.predictor_logits(t, 0) > 0;
    router[0] += r, router[1] += r == chosen, predictor[0] += p, predictor[1] += p == chosen;
  }
  auto report = statistics.report();
  CHECK(report.tokens == 2 * 598);
  CHECK(report.chosen == 2 * total(tape.chosen));
  CHECK(report.skipped() == Approx(0.75).margin(0.01));
  CHECK(report.router.compared == report.tokens);
  CHECK(report.router.predicted == 2 * router[0]);
  CHECK(report.router.agreed == 2 * router[1]);
  CHECK(report.predictor.predicted == 2 * predictor[0]);
  CHECK(report.predictor.agreed == 2 * predictor[1]);
  CHECK(report.predictor.share() == Approx(double(predictor[0]) / 598));
  std::ostringstream text;
  text << report;
  CHECK_THAT(text.str(), Contains("% skipped") && Contains("router agrees") && Contains("predictor agrees"));
  ctx.training = false;
  layer.forward(ctx, tokens.batch, tape);
  statistics.add(tape);
  report = statistics.report();
  CHECK(report.tokens == 3 * 598);
  CHECK(report.predictor.compared == 2 * 598);  // a causal rule's own choice says nothing of the other
  statistics.reset();
  CHECK(statistics.report().tokens == 0);
}

TEST_CASE("Both remedies learn to foretell the choice") {
  using Layer = moe::MixtureOfDepths<TanhBlock<float>, moe::ChoiceCrossEntropy, moe::DepthPredictor>;
  Layer layer({.block = {.hidden = 8}, .capacity = 0.25}, moe::ChoiceCrossEntropy{1}, moe::DepthPredictor{.width = 8},
              moe::Seed{3});
  const Tokens<float> tokens(512, 8);
  moe::Batch<float, Space> batch;
  batch.x = tokens.x;
  moe::Context<Space> ctx;
  Layer::Tape tape;
  auto gradients = layer.gradients();
  moe::AdamW optimizer(layer.parameters);
  const moe::Matrix<float, Space> no_dy("dy", 512, 8);
  moe::DepthStatistics<Space> statistics;
  for (int step = 0; step < 300; ++step) {
    moe::zero(ctx, static_cast<Layer::Parameters&>(gradients));
    layer.forward(ctx, batch, tape);
    layer.backward(ctx, no_dy, tape, gradients);
    optimizer.step(ctx, layer.parameters, gradients, 1e-2);
    ++ctx.step;
  }
  statistics.add(tape);
  const auto report = statistics.report();
  CHECK(report.chosen == 128);
  CHECK(report.predictor.agreement() > 0.95);
  CHECK(report.router.agreement() > 0.74);  // without a bias, zero splits the tokens in halves
}

// --------------------------------------------------------------------------------------------------------- generation

template <class Layer>
void check_generation(Layer& layer) {
  const Tokens<double> tokens(30, 4);
  auto batch = tokens.batch;
  batch.sequence_offsets = indices<Space>({0, 17, 30});
  moe::Context<Space> ctx;
  ctx.training = false;
  typename Layer::Tape tape;
  const auto expected = clone(layer.forward(ctx, batch, tape));

  // The first 9 and 5 tokens at once, behind padding of different lengths; then one token of each sequence at a time.
  auto cache = layer.cache(2, 17);
  const auto compare = [&](const auto& y, Index row, Index t) {
    for (Index h = 0; h < 4; ++h) CHECK(y(row, h) == Approx(expected(t, h)).margin(1e-13));
  };
  moe::Batch<double, Space> part;
  moe::Matrix<double, Space> x("x", 20, 4);
  moe::Vector<std::uint8_t, Space> mask("mask", 20);
  const auto put = [&](Index row, Index t) {
    for (Index h = 0; h < 4; ++h) x(row, h) = tokens.x(t, h);
    mask(row) = 1;
  };
  for (Index t = 0; t < 9; ++t) put(1 + t, t);
  for (Index t = 0; t < 5; ++t) put(15 + t, 17 + t);
  part.x = x;
  part.mask = mask;
  part.sequence_offsets = indices<Space>({0, 10, 20});
  auto y = layer.forward(ctx, part, cache);
  for (Index t = 0; t < 9; ++t) compare(y, 1 + t, t);
  for (Index t = 0; t < 5; ++t) compare(y, 15 + t, 17 + t);
  for (Index step = 0; step < 8; ++step) {
    moe::Matrix<double, Space> two("two", 2, 4);
    for (Index h = 0; h < 4; ++h) two(0, h) = tokens.x(9 + step, h), two(1, h) = tokens.x(22 + step, h);
    part = {};
    part.x = two;
    part.sequence_offsets = indices<Space>({0, 1, 2});
    y = layer.forward(ctx, part, cache);
    compare(y, 0, 9 + step);
    compare(y, 1, 22 + step);
  }
  part = {};  // nothing new of the first sequence
  const auto last = Kokkos::subview(tokens.x, Kokkos::pair<int, int>(20, 21), Kokkos::ALL);
  part.x = last;
  part.sequence_offsets = indices<Space>({0, 0, 1});
  CHECK_NOTHROW(layer.forward(ctx, part, cache));
}

TEST_CASE("Token by token with a cache is the whole sequence at once, by either causal rule") {
  using Layer = moe::MixtureOfDepths<Mean, moe::ChoiceCrossEntropy, moe::DepthPredictor>;
  Layer layer({.block = {.hidden = 4}}, moe::Seed{6});
  vary_vectors(layer.parameters);
  for (DepthChoice rule : {DepthChoice::router, DepthChoice::predictor}) {
    layer.inference = rule;
    check_generation(layer);
  }
  moe::MixtureOfDepths<moe::Residual<Tanh>, moe::ChoiceCrossEntropy> stateless({.block = {.hidden = 4}});
  check_generation(stateless);
}

TEST_CASE("The cache holds the chosen tokens alone, and counts all") {
  using Layer = moe::MixtureOfDepths<Mean, moe::ChoiceCrossEntropy>;
  Layer layer({.block = {.hidden = 4}}, moe::Seed{6});
  const Tokens<double> tokens(30, 4);
  moe::Context<Space> ctx;
  ctx.training = false;
  Layer::Tape tape;
  layer.forward(ctx, tokens.x, tape);
  auto cache = layer.cache(1, 30);
  layer.forward(ctx, tokens.x, cache);
  CHECK(cache.seen(0) == 30);
  CHECK(cache.block.lengths(0) == total(tape.chosen));
  CHECK(cache.block.lengths(0) < 25);
}

TEST_CASE("Generation refuses to look ahead") {
  moe::MixtureOfDepths<Mean, moe::ChoiceCrossEntropy> layer({.block = {.hidden = 3}});
  const Tokens<double> tokens(6, 3);
  moe::Context<Space> ctx;
  auto cache = layer.cache(3, 6);
  CHECK_THROWS_WITH(layer.forward(ctx, tokens.batch, cache), Contains("Set ctx.training = false"));
  ctx.training = false;
  CHECK_NOTHROW(layer.forward(ctx, tokens.batch, cache));
  CHECK_THROWS_WITH(layer.forward(ctx, tokens.x, cache), Contains("1 sequences for a cache of 3"));
  layer.inference = DepthChoice::top_k;
  CHECK_THROWS_WITH(layer.forward(ctx, tokens.batch, cache),
                    Contains("later ones") && Contains("moe::ChoiceCrossEntropy or moe::DepthPredictor"));
}

}  // namespace mixture_of_depths_inference_test
