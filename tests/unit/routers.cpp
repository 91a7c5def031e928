// Every part of a router in a small layer: gradients by x and all parameters against central differences, in double.
#include "moe_test/layers.hpp"

namespace routers_test {

using namespace moe_test;
using Space = Kokkos::DefaultHostExecutionSpace;

constexpr Index token_count = 9, hidden = 4, experts = 4;
const moe::MoEConfig config{.hidden = hidden, .intermediate = 3, .experts = experts};

/// Token 4 is a sequence of its own: all of it is padding.
Tokens<double> padded() {
  return Tokens<double>(token_count, hidden, {1, 4, 8});
}

template <class Router>
using LayerOf = HostLayer<double, Router, moe::ExpertFFN<moe::SiLU>, moe::RouterZLoss>;

/// Checks a whole layer whose tokens go to all experts, so that no choice can change.
template <class Source>
void check_source(const Source& source = {}) {
  using Router = moe::Router<Source, moe::AllExperts>;
  LayerOf<Router> layer(config, Router{source}, moe::RouterZLoss{0.3}, moe::Seed{3});
  check_layer(layer, padded());
  check_empty(layer);
}

/// Checks a router alone, likewise.
template <class... Policies, class... Values>
void check_all(bool training, const Values&... values) {
  check_router(moe::Router<moe::AllExperts, Policies...>{values...}, experts, padded(), training);
}

// ------------------------------------------------------------------------------------------------------ logit sources

TEST_CASE("Logits with a bias pass the gradient check") {
  check_source<moe::BiasedLogits>();
}

TEST_CASE("Cosine logits pass the gradient check") {
  check_source(moe::CosineLogits{.scale = 2});
}

TEST_CASE("Cosine logits know directions alone") {
  using Router = moe::Router<moe::CosineLogits, moe::Identity, moe::AllExperts>;
  LayerOf<Router> layer(config, moe::Seed{3});
  layer.parameters.router.temperature(0) = std::log(0.7);
  moe::Context<Space> ctx;
  LayerOf<Router>::Tape tape;
  const Tokens<double> tokens(token_count, hidden);
  for (Index h = 0; h < hidden; ++h) {
    tokens.x(0, h) = 3 * layer.parameters.router.weight(2, h);
    tokens.x(1, h) = -tokens.x(0, h);
  }
  layer.forward(ctx, tokens.batch, tape);
  CHECK(tape.routing.logits(0, 2) == Approx(7));
  CHECK(tape.routing.logits(1, 2) == Approx(-7));
}

TEST_CASE("Logits by a network pass the gradient check") {
  check_source(moe::MLPLogits<moe::Tanh>{.width = 5});
}

TEST_CASE("Product-key logits pass the gradient check") {
  check_source<moe::ProductKeyLogits>();
}

TEST_CASE("Product keys refuse numbers of experts that are no square, and odd widths") {
  const moe::ProductKeyLogits keys;
  CHECK_THROWS_AS((keys.parameters<double, Space>({5, 4})), moe::ConfigError);
  CHECK_THROWS_AS((keys.parameters<double, Space>({4, 3})), moe::ConfigError);
}

TEST_CASE("Hierarchical logits pass the gradient check") {
  check_source<moe::HierarchicalLogits>();
  check_all<moe::HierarchicalLogits, moe::Sigmoid>(false);
}

/// exp(z_e) / sum exp(z_i) over [first, last), for z = W x.
template <class Weight, class X>
double share(const Weight& weight, const X& x, Index t, Index e, Index first, Index last) {
  double total = 0, mine = 0;
  for (Index i = first; i < last; ++i) {
    double z = 0;
    for (Index h = 0; h < Index(weight.extent(1)); ++h) z += weight(i, h) * x(t, h);
    total += std::exp(z);
    if (i == e) mine = std::exp(z);
  }
  return mine / total;
}

TEST_CASE("Hierarchical scores are the product of both levels and sum to one") {
  using Router = moe::Router<moe::HierarchicalLogits, moe::AllExperts>;
  const moe::MoEConfig six{.hidden = hidden, .intermediate = 3, .experts = 6};
  LayerOf<Router> layer(six, Router{moe::HierarchicalLogits{.groups = 3}}, moe::Seed{3});
  moe::Context<Space> ctx;
  LayerOf<Router>::Tape tape;
  const Tokens<double> tokens(token_count, hidden);
  layer.forward(ctx, tokens.batch, tape);
  const auto& p = layer.parameters.router;
  for (Index t = 0; t < token_count; ++t) {
    double sum = 0;
    for (Index e = 0; e < 6; ++e) {
      const Index g = e / 2;
      const double expected = share(p.top, tokens.x, t, g, 0, 3) * share(p.weight, tokens.x, t, e, 2 * g, 2 * g + 2);
      CHECK(tape.routing.scores(t, e) == Approx(expected));
      sum += tape.routing.scores(t, e);
    }
    CHECK(sum == Approx(1));
  }
}

TEST_CASE("Logits of a normalised input pass the gradient check") {
  check_source<moe::NormalizedInput<>>();
  check_source<moe::NormalizedInput<moe::BiasedLogits>>();
}

TEST_CASE("Logits of a sequence's mean pass the gradient check") {
  check_source<moe::SequenceMeanLogits<>>();
  check_source<moe::SequenceMeanLogits<moe::NormalizedInput<>>>();
}

TEST_CASE("A sequence's tokens share one decision, which padding does not move") {
  using Router = moe::Router<moe::SequenceMeanLogits<>, moe::AllExperts>;
  LayerOf<Router> layer(config, moe::Seed{3});
  moe::Context<Space> ctx;
  LayerOf<Router>::Tape tape;
  const auto tokens = padded();
  layer.forward(ctx, tokens.batch, tape);
  const auto before = clone(tape.routing.scores);
  for (Index e = 0; e < experts; ++e) {
    for (Index t : {2, 3}) CHECK(before(t, e) == before(0, e));
    for (Index t : {6, 7}) CHECK(before(t, e) == before(5, e));
  }
  for (Index t : {1, 4, 8}) tokens.x(t, 0) += 5;
  layer.forward(ctx, tokens.batch, tape);
  CHECK(same_bits(before, tape.routing.scores));
}

TEST_CASE("Logits from elsewhere get their own gradient") {
  using Router = moe::Router<moe::GivenLogits, moe::AllExperts>;
  moe::MoEConfig given = config;
  given.router_hidden = experts;
  LayerOf<Router> layer(given, moe::RouterZLoss{0.3}, moe::Seed{3});
  auto tokens = padded();
  tokens.give_router_input(experts);
  check_layer(layer, tokens);
  check_empty(layer);
  given.router_hidden = 3;
  CHECK_THROWS_AS(LayerOf<Router>(given), moe::ConfigError);
}

TEST_CASE("Without logits a table chooses and only experts learn") {
  using Router = moe::Router<moe::NoLogits, moe::TableLookup<2>, moe::ConstantWeight>;
  LayerOf<Router> layer(config, Router{moe::TableLookup<2>{.table_rows = 3}, moe::ConstantWeight{0.5}}, moe::Seed{3});
  auto tokens = padded();
  moe::Vector<std::int32_t, Space> ids("ids", token_count);
  for (Index t = 0; t < token_count; ++t) ids(t) = std::int32_t(t % 3);
  tokens.batch.token_ids = ids;
  check_layer(layer, tokens);
}

TEST_CASE("Logits with trainable noise pass the gradient check, both losses included") {
  using Router = moe::Router<moe::NoisyLogits, moe::Identity, moe::TopK<2>, moe::SoftmaxOfChosen>;
  HostLayer<double, Router, moe::ImportanceLoss, moe::LoadLoss, moe::RouterZLoss> layer(
      config, moe::ImportanceLoss{0.5}, moe::LoadLoss{0.7}, moe::RouterZLoss{0.3}, moe::Seed{3});
  check_layer(layer, padded(), true);
}

TEST_CASE("Trainable noise is off in evaluation") {
  using Router = moe::Router<moe::NoisyLogits, moe::AllExperts>;
  LayerOf<Router> layer(config, moe::Seed{3});
  moe::Context<Space> ctx;
  ctx.training = false;
  LayerOf<Router>::Tape tape;
  const auto tokens = padded();
  layer.forward(ctx, tokens.batch, tape);
  for (Index e = 0; e < experts; ++e) CHECK(tape.routing.logits(0, e) == tape.routing.clean_logits(0, e));
  auto gradients = layer.gradients();
  layer.backward(ctx, tokens.dy, tape, gradients);
  CHECK(largest(gradients.router.noise_weight) == 0);
  CHECK(largest(gradients.router.weight) > 1e-3);
}

// ----------------------------------------------------------------------------------------------------------- row maps

TEST_CASE("A cap on logits passes the gradient check") {
  check_all<moe::SoftCap>(false, moe::SoftCap{0.8});
}

TEST_CASE("A factor on logits passes the gradient check") {
  check_all<moe::LogitScale>(false, moe::LogitScale{-1.7});
}

TEST_CASE("Gumbel noise on logits passes the gradient check") {
  check_all<moe::GumbelNoise>(true, moe::GumbelNoise{0.5});
}

TEST_CASE("Jitter of the router's input passes the gradient check") {
  check_all<moe::Jitter>(true, moe::Jitter{0.4});
}

TEST_CASE("Maps in a chain pass the gradient check, in any order and beside jitter") {
  check_all<moe::SoftCap, moe::LogitScale>(false, moe::SoftCap{0.8}, moe::LogitScale{1.7});
  check_all<moe::LogitScale, moe::SoftCap>(false, moe::SoftCap{0.8}, moe::LogitScale{1.7});
  check_all<moe::GumbelNoise, moe::Jitter, moe::SoftCap, moe::LogitScale>(true, moe::GumbelNoise{0.5}, moe::Jitter{0.4},
                                                                          moe::SoftCap{0.8}, moe::LogitScale{1.7});
  check_all<moe::NoisyLogits, moe::SoftCap, moe::GumbelNoise, moe::LogitScale>(true, moe::SoftCap{0.8});
}

/// What a user writes for a map of one's own; logits depend on each other.
struct LessMean {
  using policy = moe::kind::row_map;
  static constexpr moe::MapPlace place = moe::MapPlace::logits;

  template <class Real>
  KOKKOS_FUNCTION static Real part(Index e) {
    return Real(e + 1) / 2;
  }
  template <class Real>
  KOKKOS_FUNCTION void apply(const moe::Team& team, moe::Row<Real> row, const moe::RowRandom&) const {
    const Real mean = team.sum<Real>(row.size, [&](Index e) { return row[e]; }) / Real(row.size);
    team.each(row.size, [&](Index e) { row[e] -= part<Real>(e) * mean; });
  }
  template <class Real>
  KOKKOS_FUNCTION void pullback(const moe::Team& team, moe::Row<const Real>, moe::Row<Real> gradient,
                                const moe::RowRandom&) const {
    const Real sum = team.sum<Real>(gradient.size, [&](Index e) { return part<Real>(e) * gradient[e]; });
    team.each(gradient.size, [&](Index e) { gradient[e] -= sum / Real(gradient.size); });
  }
};

TEST_CASE("A map of one's own passes the gradient check among others") {
  check_all<LessMean>(false);
  check_all<moe::SoftCap, LessMean, moe::LogitScale>(false, moe::SoftCap{0.8}, moe::LogitScale{1.7});
  check_all<LessMean, moe::LogitScale, moe::SoftCap>(false, moe::SoftCap{0.8}, moe::LogitScale{1.7});
}

TEST_CASE("Maps act in the order of the router's arguments") {
  moe::Matrix<double, Space> logits("logits", 1, 2);
  logits(0, 0) = 0.3;
  logits(0, 1) = -2;
  const auto second = [&](auto router) {
    moe::Context<Space> ctx;
    moe::Batch<double, Space> batch;
    batch.x = logits;
    moe::Routing<double, Space> routing;
    router.forward(ctx, batch, moe::NoParameters{}, {}, 2, routing);
    return routing.logits(0, 1);
  };
  const moe::SoftCap cap{3};
  const moe::LogitScale scale{2};
  CHECK(second(moe::Router<moe::GivenLogits, moe::SoftCap, moe::LogitScale>{cap, scale}) ==
        Approx(2 * 3 * std::tanh(-2.0 / 3)));
  CHECK(second(moe::Router<moe::GivenLogits, moe::LogitScale, moe::SoftCap>{cap, scale}) ==
        Approx(3 * std::tanh(-4.0 / 3)));
}

// --------------------------------------------------------------------------------------------- scorings and weightings

TEST_CASE("Every scoring passes the gradient check") {
  check_all<moe::Softmax>(false);
  check_all<moe::Sigmoid>(false);
  check_all<moe::SqrtSoftplus>(false);
  check_all<moe::Identity>(false);
}

TEST_CASE("Weights over their sum pass the gradient check") {
  check_all<moe::Sigmoid, moe::NormalizeSum>(false, moe::NormalizeSum{0.1});
}

TEST_CASE("Weights over the larger of sum and minimum pass the gradient check on both sides") {
  check_all<moe::Sigmoid, moe::NormalizeMax>(false);
  check_all<moe::Sigmoid, moe::NormalizeMax>(false, moe::NormalizeMax{10});
}

TEST_CASE("Weights of unit p-norm pass the gradient check, negative ones too") {
  for (double p : {1.0, 2.0, 3.0}) {
    CAPTURE(p);
    check_all<moe::Softmax, moe::NormalizeLp>(false, moe::NormalizeLp{p});
    check_all<moe::Identity, moe::NormalizeLp>(false, moe::NormalizeLp{p});
  }
}

TEST_CASE("Weights of the chosen logits pass the gradient check") {
  check_all<moe::Identity, moe::SoftmaxOfChosen>(false);
  check_all<moe::Identity, moe::SigmoidOfChosen>(false);
}

TEST_CASE("Learned scales pass the gradient check, alone and in a chain") {
  check_all<moe::Softmax, moe::LearnedScale>(false);
  check_all<moe::Sigmoid, moe::PerExpertScale>(false);
  check_all<moe::Identity, moe::LearnedScale, moe::SoftmaxOfChosen, moe::PerExpertScale, moe::NormalizeLp, moe::Scale>(
      false, moe::NormalizeLp{2}, moe::Scale{1.5});
}

TEST_CASE("Learned scales add up over many tokens") {
  const moe::Router<moe::AllExperts, moe::PerExpertScale, moe::LearnedScale> router;
  check_router(router, 3, Tokens<double>(150, 2, {3, 64, 149}));
}

/// Checks a router in which tokens make fewer choices than they may.
template <class... Policies, class... Values>
void check_ragged(const Values&... values) {
  const Tokens<double> tokens(token_count, hidden);
  const Index made = check_router(moe::Router<Policies...>{values...}, experts, tokens);
  CHECK(made > token_count / 2);
  CHECK(made < 3 * token_count);
}

TEST_CASE("Weightings pass over choices not made: top-p") {
  const moe::TopP top{.p = 0.55, .cap = 4};
  check_ragged<moe::TopP, moe::NormalizeSum>(top);
  check_ragged<moe::TopP, moe::NormalizeMax>(top);
  check_ragged<moe::TopP, moe::NormalizeLp>(top, moe::NormalizeLp{3});
  check_ragged<moe::TopP, moe::LearnedScale, moe::PerExpertScale, moe::NormalizeSum>(top);
}

TEST_CASE("Weightings pass over choices not made: a threshold") {
  const moe::Threshold above{.threshold = 0.25, .cap = 3};
  check_ragged<moe::Threshold, moe::Identity, moe::SoftmaxOfChosen>(above);
  check_ragged<moe::Threshold, moe::Identity, moe::SigmoidOfChosen, moe::PerExpertScale>(above);
  check_ragged<moe::Threshold, moe::Identity, moe::SoftmaxOfChosen, moe::NormalizeLp>(above, moe::NormalizeLp{2});
  check_ragged<moe::Threshold, moe::Softmax, moe::NormalizeMax>(above, moe::NormalizeMax{0.4});
}

TEST_CASE("Skipped choices have no gradient of their own but move the others' weights") {
  using Router = moe::Router<moe::Softmax, moe::TopK<3>, moe::NormalizeSum, moe::DynamicSkip>;
  LayerOf<Router> layer(config, Router{moe::DynamicSkip{0.6}}, moe::RouterZLoss{0.3}, moe::Seed{3});
  const auto tokens = padded();
  check_layer(layer, tokens);
  moe::Context<Space> ctx;
  LayerOf<Router>::Tape tape;
  layer.forward(ctx, tokens.batch, tape);
  const auto report = moe::load_report(tape);
  CHECK(report.assignments() == 3 * (token_count - 3));
  CHECK(report.dropped() > 0);
  CHECK(report.dropped() < report.assignments() / 2);
}

TEST_CASE("SparseMixer's gradient in evaluation is its weight's") {
  const moe::Router<moe::SparseMixer, moe::Identity> router{moe::SparseMixer{.jitter = 0.4}};
  check_router(router, experts, padded());
}

}  // namespace routers_test
