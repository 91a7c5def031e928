// Who is chosen: selections, choice keys and skipping on rows made by hand, frequencies of draws, and balancers.
#include "moe_test/golden.hpp"
#include "moe_test/layers.hpp"

namespace selections_test {

using namespace moe_test;
using Space = Kokkos::DefaultHostExecutionSpace;
using Routing = moe::Routing<double, Space>;
using Batch = moe::Batch<double, Space>;
using Ids = std::vector<moe::ExpertId>;
using Values = std::vector<double>;

moe::Matrix<double, Space> rows(const std::vector<Values>& values) {
  moe::Matrix<double, Space> result("rows", values.size(), values.at(0).size());
  for (std::size_t t = 0; t < values.size(); ++t) std::copy(values[t].begin(), values[t].end(), &result(t, 0));
  return result;
}

/// Logits whose softmax is this.
Values logarithms(Values probabilities) {
  for (double& p : probabilities) p = std::log(p);
  return probabilities;
}

/// Routes logits as they are.
template <class... Policies>
Routing route(const moe::Router<moe::GivenLogits, Policies...>& router, const moe::Matrix<double, Space>& logits,
              Batch batch = {}, bool training = false) {
  moe::Context<Space> ctx;
  ctx.training = training;
  ctx.seed = 11;
  batch.x = logits;
  const Index experts = logits.extent(1);
  router.check({experts, experts});
  const auto buffers = router.template buffers<double, Space>({experts, experts});
  Routing routing;
  router.forward(ctx, batch, moe::NoParameters{}, buffers, experts, routing);
  ctx.check();
  return routing;
}

template <class... Policies>
using Given = moe::Router<moe::GivenLogits, Policies...>;

Ids chosen(const Routing& routing, Index t) {
  const auto& a = routing.assignments;
  return {a.expert.data() + a.begin(t), a.expert.data() + a.end(t)};
}

Values weights(const Routing& routing, Index t) {
  const auto& a = routing.assignments;
  return {a.weight.data() + a.begin(t), a.weight.data() + a.end(t)};
}

// --------------------------------------------------------------------------------------------------------- selections

TEST_CASE("Top-k takes the lowest of equal experts first") {
  const auto routing = route(Given<moe::TopK<3>>{}, rows({{1, 2, 1, 2}, {0, 0, 0, 0}, {-1, -2, -2, -1}}));
  CHECK(chosen(routing, 0) == Ids{1, 3, 0});
  CHECK(chosen(routing, 1) == Ids{0, 1, 2});
  CHECK(chosen(routing, 2) == Ids{0, 3, 1});
}

TEST_CASE("Top-p takes the largest until they hold p, at least floor and at most cap") {
  const auto logits = rows({logarithms({0.05, 0.5, 0.15, 0.3})});
  const auto with = [&](double p, int cap, int floor) {
    return chosen(route(Given<moe::TopP>{moe::TopP{.p = p, .cap = cap, .floor = floor}}, logits), 0);
  };
  CHECK(with(0.45, 4, 1) == Ids{1, -1, -1, -1});
  CHECK(with(0.55, 4, 1) == Ids{1, 3, -1, -1});
  CHECK(with(0.9, 4, 1) == Ids{1, 3, 2, -1});
  CHECK(with(1.0, 4, 4) == Ids{1, 3, 2, 0});
  CHECK(with(0.9, 2, 1) == Ids{1, 3});
  CHECK(with(0.1, 3, 2) == Ids{1, 3, -1});
}

TEST_CASE("A threshold takes what is above it, at least floor and at most cap") {
  const auto logits = rows({{0.5, -0.2, 0.9, 0.7}, {-1, -2, -3, -4}, {0.6, 0, 0, 0}});
  const auto with = [&](int cap, int floor) {
    return route(Given<moe::Identity, moe::Threshold>{moe::Threshold{.threshold = 0.6, .cap = cap, .floor = floor}},
                 logits);
  };
  CHECK(chosen(with(3, 0), 0) == Ids{2, 3, -1});
  CHECK(chosen(with(3, 0), 1) == Ids{-1, -1, -1});
  CHECK(chosen(with(3, 0), 2) == Ids{-1, -1, -1});  // not above, but at it
  CHECK(chosen(with(1, 0), 0) == Ids{2});
  CHECK(chosen(with(3, 1), 1) == Ids{0, -1, -1});
}

TEST_CASE("All experts are taken in order, but for those that a key keeps out") {
  const auto logits = rows({{1, 4, 2, 3}});
  CHECK(chosen(route(Given<moe::AllExperts>{}, logits), 0) == Ids{0, 1, 2, 3});
  const auto routing = route(Given<moe::AllExperts, moe::GroupLimit<4, 2>>{}, logits);
  CHECK(chosen(routing, 0) == Ids{-1, 1, -1, 3});
  CHECK(weights(routing, 0)[0] == 0);
}

TEST_CASE("Shared experts stand behind every token's own and are weighted with them") {
  using Router = Given<moe::WithShared<moe::TopK<1>, 2>, moe::Sigmoid, moe::NormalizeSum>;
  const auto routing = route(Router{}, rows({{1, 3, -2, -3}, {5, 4, 9, 9}}));
  CHECK(chosen(routing, 0) == Ids{1, 2, 3});
  CHECK(chosen(routing, 1) == Ids{0, 2, 3});
  const auto w = weights(routing, 0);
  CHECK(w[0] + w[1] + w[2] == Approx(1));
  CHECK(w[2] / w[0] == Approx((1 + std::exp(-3.0)) / (1 + std::exp(3.0))));
  CHECK_THROWS_AS(Router{}.check({2, 4}), moe::ConfigError);
}

using Table = Given<moe::TableLookup<2>, moe::ConstantWeight>;

TEST_CASE("A table chooses by token id") {
  const Table router{moe::TableLookup<2>{.table_rows = 3}};
  auto buffers = router.buffers<double, Space>({4, 4});
  moe::assign_table(buffers.table, {0, 1, 3, 2, 2, 0});
  moe::Vector<std::int32_t, Space> ids("ids", 3);
  ids(0) = 2, ids(1) = 0, ids(2) = 1;
  Batch batch;
  batch.x = rows({{0, 0, 0, 0}, {1, 2, 3, 4}, {4, 3, 2, 1}});
  batch.token_ids = ids;
  moe::Context<Space> ctx;
  Routing routing;
  router.forward(ctx, batch, moe::NoParameters{}, buffers, 4, routing);
  CHECK(chosen(routing, 0) == Ids{2, 0});
  CHECK(chosen(routing, 1) == Ids{0, 1});
  CHECK(chosen(routing, 2) == Ids{3, 2});
  CHECK(weights(routing, 2) == Values{1, 1});
  CHECK_THROWS_AS(moe::assign_table(buffers.table, {0, 1}), moe::ShapeError);
}

TEST_CASE("A table chooses by task, the same for all tokens of a sequence") {
  const Table router{moe::TableLookup<2>{.table_rows = 5, .key = moe::TableKey::task}};
  const auto table = router.buffers<double, Space>({4, 4}).table;
  moe::Vector<std::int32_t, Space> tasks("tasks", 2);
  tasks(0) = 4, tasks(1) = 1;
  Batch batch;
  batch.sequence_offsets = indices<Space>({0, 1, 3});
  batch.task_ids = tasks;
  const auto routing = route(router, rows({{0, 0, 0, 0}, {1, 2, 3, 4}, {4, 3, 2, 1}}), batch);
  CHECK(chosen(routing, 0) == Ids{table(4, 0), table(4, 1)});
  CHECK(chosen(routing, 1) == Ids{table(1, 0), table(1, 1)});
  CHECK(chosen(routing, 2) == chosen(routing, 1));
}

TEST_CASE("A table without ids, with too few, or with unknown ones is an error") {
  const Table by_id{moe::TableLookup<2>{.table_rows = 3}};
  const Table by_task{moe::TableLookup<2>{.table_rows = 3, .key = moe::TableKey::task}};
  const auto logits = rows({{0, 0, 0, 0}, {1, 2, 3, 4}});
  CHECK_THROWS_AS(route(by_id, logits), moe::ShapeError);
  CHECK_THROWS_AS(route(by_task, logits), moe::ShapeError);
  CHECK_THROWS_AS(Table{}.check({4, 4}), moe::ConfigError);
  moe::Vector<std::int32_t, Space> ids("ids", 1);
  Batch batch;
  batch.token_ids = ids;
  batch.task_ids = ids;
  CHECK_THROWS_AS(route(by_id, logits, batch), moe::ShapeError);
  batch.sequence_offsets = indices<Space>({0, 1, 2});
  CHECK_THROWS_AS(route(by_task, logits, batch), moe::ShapeError);
  for (std::int32_t unknown : {-1, 3}) {
    moe::Vector<std::int32_t, Space> two("ids", 2);
    two(1) = unknown;
    batch.token_ids = two;
    CHECK_THROWS_AS(route(by_id, logits, batch), moe::DataError);
  }
}

// -------------------------------------------------------------------------------------------------- keys and skipping

constexpr Index many = 20000;

/// The same row for many tokens.
moe::Matrix<double, Space> repeated(const Values& row) {
  return rows(std::vector<Values>(many, row));
}

/// Is a count of `many` draws within five standard deviations of its mean?
bool likely(Index count, double p) {
  return std::abs(double(count) - p * many) < 5 * std::sqrt(many * p * (1 - p));
}

TEST_CASE("Gumbel sampling draws from the softmax, without replacement, and weights stay the scores") {
  const Values z{1, 0, -0.5, 0.3};
  for (double temperature : {1.0, 0.5}) {
    const auto routing =
        route(Given<moe::TopK<2>, moe::GumbelSampling>{moe::GumbelSampling{temperature}}, repeated(z), {}, true);
    Values p(4);
    double total = 0;
    for (int e = 0; e < 4; ++e) total += p[e] = std::exp(z[e] / temperature);
    std::vector<Index> first(4), second(4);
    for (Index t = 0; t < many; ++t) ++first[chosen(routing, t)[0]], ++second[chosen(routing, t)[1]];
    for (int e = 0; e < 4; ++e) {
      double later = 0;
      for (int i = 0; i < 4; ++i) later += i == e ? 0 : p[i] / total * p[e] / (total - p[i]);
      CHECK(likely(first[e], p[e] / total));
      CHECK(likely(second[e], later));
    }
    for (Index t = 0; t < 10; ++t) CHECK(weights(routing, t)[0] == routing.scores(t, chosen(routing, t)[0]));
  }
  const auto still = route(Given<moe::TopK<2>, moe::GumbelSampling>{}, rows({z}));
  CHECK(chosen(still, 0) == Ids{0, 3});
}

TEST_CASE("Gumbel noise on logits moves choices and scores alike") {
  const Values z{1, 0, -0.5, 0.3};
  const auto routing = route(Given<moe::TopK<1>, moe::GumbelNoise>{}, repeated(z), {}, true);
  double total = 0;
  for (double value : z) total += std::exp(value);
  std::vector<Index> first(4);
  for (Index t = 0; t < many; ++t) ++first[chosen(routing, t)[0]];
  for (int e = 0; e < 4; ++e) CHECK(likely(first[e], std::exp(z[e]) / total));
}

TEST_CASE("Expert dropout keeps experts out at its rate, each by itself, while training") {
  using Router = Given<moe::AllExperts, moe::ExpertDropout>;
  const Router router{moe::ExpertDropout{0.3}};
  const auto logits = repeated({1, 2, 3});
  const auto routing = route(router, logits, {}, true);
  std::vector<Index> out(3);
  Index both = 0;
  for (Index t = 0; t < many; ++t) {
    const auto ids = chosen(routing, t);
    for (int e = 0; e < 3; ++e) out[e] += ids[e] == moe::no_expert;
    both += ids[0] == moe::no_expert && ids[2] == moe::no_expert;
  }
  for (Index count : out) CHECK(likely(count, 0.3));
  CHECK(likely(both, 0.09));
  CHECK(chosen(route(router, logits), 0) == Ids{0, 1, 2});
  CHECK_THROWS_AS(Router{moe::ExpertDropout{1}}.check({3, 3}), moe::ConfigError);
}

/// Which choices of a token are still live.
std::vector<int> live(const Routing& routing, Index t) {
  const auto& a = routing.assignments;
  return {a.live.data() + a.begin(t), a.live.data() + a.end(t)};
}

TEST_CASE("Dynamic skipping drops choices far below the first") {
  using Router = Given<moe::TopK<3>, moe::DynamicSkip>;
  const auto routing = route(Router{moe::DynamicSkip{0.5}},
                             rows({logarithms({0.1, 0.5, 0.3, 0.1}), logarithms({0.27, 0.26, 0.25, 0.22})}));
  CHECK(live(routing, 0) == std::vector<int>{1, 1, 0});
  CHECK(live(routing, 1) == std::vector<int>{1, 1, 1});
  CHECK(weights(routing, 0)[2] == Approx(0.1));
}

TEST_CASE("A random second expert stays with probability factor times its weight, while training") {
  using Router = Given<moe::TopK<2>, moe::NormalizeSum, moe::RandomSecond>;
  const auto logits = repeated(logarithms({0.7, 0.1, 0.2}));
  const auto routing = route(Router{moe::RandomSecond{1.5}}, logits, {}, true);
  Index kept = 0;
  for (Index t = 0; t < many; ++t) {
    kept += live(routing, t)[1];
    if (live(routing, t)[0] != 1) FAIL_CHECK("the first choice always stays");
  }
  CHECK(likely(kept, 1.5 * 2 / 9));
  CHECK(live(route(Router{}, logits), 0) == std::vector<int>{1, 1});
}

TEST_CASE("Dropout of experts and of second choices draw apart") {
  using Router = Given<moe::TopK<2>, moe::NormalizeSum, moe::ExpertDropout, moe::RandomSecond>;
  const auto routing = route(Router{moe::ExpertDropout{0.5}, moe::RandomSecond{1}}, repeated({9, 0, 0, 0}), {}, true);
  Index present = 0, kept = 0;  // where expert 0 is out, two others have equal weights
  for (Index t = 0; t < many; ++t) {
    const auto ids = chosen(routing, t);
    if (ids[0] == 0 || ids[1] == moe::no_expert) continue;
    ++present;
    kept += live(routing, t)[1];
  }
  CHECK(std::abs(double(kept) - 0.5 * double(present)) < 5 * std::sqrt(double(present) / 4));
}

// ---------------------------------------------------------------------------------------------------------- balancers

/// The loads of a layer of eight experts after some steps of its balancer.
template <class Balancer>
moe::LoadReport balanced(const Balancer& balancer, Index tokens) {
  using Router = Given<moe::Sigmoid, moe::Threshold, Balancer>;
  const moe::MoEConfig config{.hidden = 2, .intermediate = 1, .experts = 8, .router_hidden = 8};
  HostLayer<double, Router> layer(config, Router{moe::Threshold{.threshold = 0.9, .cap = 8}, balancer});
  moe::Context<Space> ctx;
  typename HostLayer<double, Router>::Tape tape;
  moe::LoadStatistics<Space> statistics;
  Tokens<double> given(tokens, 2);
  given.give_router_input(8);
  for (Index t = 0; t < tokens; ++t) {
    for (Index e = 0; e < 8; ++e) given.router_input(t, e) += 0.1 * double(e);  // later experts score higher
  }
  for (int step = 0; step < 300; ++step) {
    layer.forward(ctx, given.batch, tape);
    statistics.reset();
    statistics.add(tape);
    layer.update_balance(ctx, statistics);
  }
  return moe::load_report(tape);
}

TEST_CASE("A shift of all keys brings a threshold to k experts a token") {
  const Index tokens = 500;
  const auto report = balanced(moe::MeanCountBalancer{.k = 2.5, .rate = 2e-3}, tokens);
  CHECK(double(report.assignments()) / double(tokens) == Approx(2.5).epsilon(0.03));
  CHECK(report.maximum_violation() > 0.2);  // one shift for all: loads stay uneven
}

TEST_CASE("Quotas bring a threshold to k experts a token and to even loads") {
  const Index tokens = 500;
  const auto report = balanced(moe::QuotaBalancer{.k = 2.5, .rate = 2e-3}, tokens);
  CHECK(double(report.assignments()) / double(tokens) == Approx(2.5).epsilon(0.03));
  CHECK(report.maximum_violation() < 0.05);
}

// ------------------------------------------------------------------------------------------------------------ goldens

/// Combine weights of GShard's layer by (token, expert), with top-2 choices under a capacity of 6.
template <class... Policies>
void check_gshard(const std::string& name, moe::Renormalize renormalize) {
  const GoldenFile golden("gshard_top2");
  using Router = Given<moe::TopK<2>, Policies...>;
  using Layer = HostLayer<double, Router, moe::CapacityPolicy<moe::Drop>>;
  moe::CapacityPolicy<moe::Drop> capacity;
  capacity.tokens_per_expert = 6;
  capacity.priority = moe::Priority::choice;
  capacity.renormalize = renormalize;
  const auto logits = golden.matrix<Space>("logits");
  const Index tokens = logits.extent(0), experts = logits.extent(1);
  Layer layer(moe::MoEConfig{.hidden = 5, .intermediate = 3, .experts = experts, .router_hidden = experts}, capacity);
  Tokens<double> given(tokens, 5);
  given.give_router_input(experts);
  std::copy(logits.data(), logits.data() + logits.size(), given.router_input.data());
  const auto values = golden.file.read<float>("uniform");
  moe::Matrix<float, Space> uniform("uniform", tokens, 1);
  std::copy(values.begin(), values.end(), uniform.data());
  given.batch.draws = uniform;
  moe::Context<Space> ctx;
  typename Layer::Tape tape;
  layer.forward(ctx, given.batch, tape);
  const auto combine = golden.file.read<float>("combine." + name);  // (T, E, C)
  for (Index t = 0; t < tokens; ++t) {
    Values expected(experts), got(experts);
    for (Index i = 0; i < experts * 6; ++i) expected[i / 6] += double(combine[t * experts * 6 + i]);
    for (Index a = 2 * t; a < 2 * t + 2; ++a) {
      if (tape.plan.assignment_row(a) >= 0) got[tape.routing.assignments.expert(a)] += tape.weight(a);
    }
    CAPTURE(t);
    for (Index e = 0; e < experts; ++e) CHECK(got[e] == Approx(expected[e]).margin(1e-6));
  }
}

TEST_CASE("GShard's combine weights agree with their golden: normalised before drops") {
  check_gshard<moe::NormalizeSum>("before", moe::Renormalize::never);
}

TEST_CASE("GShard's combine weights agree with their golden: normalised after drops") {
  check_gshard("after", moe::Renormalize::to_one);
}

TEST_CASE("GShard's combine weights agree with their golden: a random second expert") {
  check_gshard<moe::NormalizeSum, moe::RandomSecond>("random2", moe::Renormalize::never);
}

}  // namespace selections_test
