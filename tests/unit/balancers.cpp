// Balancers: their steps by hand, balance on uneven data, groups, and counts that do not depend on microbatches.
#include <moe/balance/load.hpp>
#include <moe/balance/quantile_bias.hpp>
#include <moe/routing/router.hpp>
#include <moe/routing/simple_logits.hpp>

#include "moe_test/cases.hpp"

namespace balancers_test {

using namespace moe_test;
using Space = Kokkos::DefaultHostExecutionSpace;
using Matrix = moe::Matrix<double, Space>;
using moe::BiasRule;
constexpr double infinity = std::numeric_limits<double>::infinity();

/// The bias behind one step, from the given one.
template <class Balancer>
std::vector<double> step(const Balancer& balancer, std::vector<double> bias, const std::vector<Index>& load,
                         Index tokens) {
  using Router = moe::Router<moe::GivenLogits, moe::Sigmoid, moe::Threshold, Balancer>;
  const Index experts = Index(bias.size());
  const Router router{moe::Threshold{.cap = int(experts)}, balancer};
  router.check({experts, experts});
  moe::Context<Space> ctx;
  typename Router::template Buffers<double, Space> buffers{moe::Vector<double, Space>("bias", experts)};
  std::copy(bias.begin(), bias.end(), buffers.balance_bias.data());
  router.update_balance(ctx, buffers, moe::Vector<const Index, Space>(indices<Space>(load)),
                        moe::Vector<const Index, Space>(indices<Space>({tokens})));
  return {buffers.balance_bias.data(), buffers.balance_bias.data() + experts};
}

void check_bias(const std::vector<double>& got, const std::vector<double>& expected) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t e = 0; e < got.size(); ++e) CHECK(got[e] == Approx(expected[e]).margin(1e-14));
}

TEST_CASE("A bias moves by the sign of its error, in proportion, or over the root mean square") {
  const std::vector<Index> load = {6, 2, 4, 0};  // the mean is 3
  const std::vector<double> bias = {0.5, -0.5, 0, 1};
  check_bias(step(moe::BiasBalancer{0.1}, bias, load, 6), {0.4, -0.4, -0.1, 1.1});
  check_bias(step(moe::BiasBalancer{0.3, BiasRule::proportional}, bias, load, 6), {0.2, -0.4, -0.1, 1.3});
  const double rms = std::sqrt((9.0 + 1 + 1 + 9) / 4);
  check_bias(step(moe::BiasBalancer{0.1, BiasRule::normalized}, bias, load, 6),
             {0.5 - 0.3 / rms, -0.5 + 0.1 / rms, -0.1 / rms, 1 + 0.3 / rms});
  for (auto rule : {BiasRule::sign, BiasRule::proportional, BiasRule::normalized}) {
    check_bias(step(moe::BiasBalancer{0.1, rule}, bias, {3, 3, 3, 3}, 6), bias);  // equal loads
    check_bias(step(moe::BiasBalancer{0.1, rule}, bias, {0, 0, 0, 0}, 0), bias);  // no tokens
  }
}

TEST_CASE("Loads are made equal within groups, biases are clipped and decay") {
  const std::vector<Index> load = {6, 2, 4, 0, 9, 9};
  const std::vector<double> bias = {0.5, -0.5, 0, 1, 0.2, 0.3};
  check_bias(step(moe::BiasBalancer{.rate = 0.1, .groups = 3}, bias, load, 6), {0.4, -0.4, -0.1, 1.1, 0.2, 0.3});
  // Within each pair the errors are -2 and 2, -2 and 2, 0 and 0.
  check_bias(step(moe::BiasBalancer{.rate = 0.1, .rule = BiasRule::normalized, .groups = 3}, bias, load, 6),
             {0.4, -0.4, -0.1, 1.1, 0.2, 0.3});
  check_bias(step(moe::BiasBalancer{.rate = 0.1, .groups = 3, .limit = 0.4}, bias, load, 6),
             {0.4, -0.4, -0.1, 0.4, 0.2, 0.3});
  check_bias(step(moe::BiasBalancer{.rate = 0.1, .groups = 3, .decay = 0.5}, bias, load, 6),
             {0.15, -0.15, -0.1, 0.6, 0.1, 0.15});
  CHECK_THROWS_AS(step(moe::BiasBalancer{.groups = 4}, bias, load, 6), moe::ConfigError);
  CHECK_THROWS_AS(step(moe::BiasBalancer{.groups = 0}, bias, load, 6), moe::ConfigError);
  CHECK_THROWS_AS(step(moe::BiasBalancer{.decay = 2}, bias, load, 6), moe::ConfigError);
  CHECK_THROWS_AS(step(moe::BiasBalancer{.limit = -1}, bias, load, 6), moe::ConfigError);
}

TEST_CASE("Experts that every token has are in no group of a balancer") {
  using Router = moe::Router<moe::GivenLogits, moe::WithShared<moe::TopK<1>, 1>, moe::BiasBalancer>;
  const Router router{moe::BiasBalancer{.rate = 0.1, .groups = 2}};
  CHECK_NOTHROW(router.check({5, 5}));
  CHECK_THROWS_AS(router.check({6, 6}), moe::ConfigError);
  moe::Context<Space> ctx;
  Router::Buffers<double, Space> buffers{moe::Vector<double, Space>("bias", 5)};
  router.update_balance(ctx, buffers, moe::Vector<const Index, Space>(indices<Space>({1, 3, 2, 2, 8})),
                        moe::Vector<const Index, Space>(indices<Space>({8})));
  check_bias({buffers.balance_bias.data(), buffers.balance_bias.data() + 5}, {0.1, -0.1, 0, 0, 0});
}

TEST_CASE("Shifts and quotas move by their rules, too") {
  const std::vector<Index> load = {6, 2, 4, 0};
  const std::vector<double> bias = {0, 0, 0, 0};
  // 6 tokens of 4 experts each: 24 where 12 came; each expert should get 6.
  check_bias(step(moe::MeanCountBalancer{.k = 4, .rate = 0.1}, bias, load, 6), {0.1, 0.1, 0.1, 0.1});
  check_bias(step(moe::MeanCountBalancer{.k = 4, .rate = 0.1, .rule = BiasRule::proportional}, bias, load, 6),
             {0.05, 0.05, 0.05, 0.05});
  check_bias(step(moe::MeanCountBalancer{.k = 1, .rate = 0.1, .rule = BiasRule::normalized}, bias, load, 6),
             {-0.1, -0.1, -0.1, -0.1});
  check_bias(step(moe::QuotaBalancer{.k = 4, .rate = 0.1}, bias, load, 6), {0, 0.1, 0.1, 0.1});
  check_bias(step(moe::QuotaBalancer{.k = 4, .rate = 0.3, .rule = BiasRule::proportional}, bias, load, 6),
             {0, 0.2, 0.1, 0.3});
  const double rms = std::sqrt((0.0 + 16 + 4 + 36) / 4);
  check_bias(step(moe::QuotaBalancer{.k = 4, .rate = 0.1, .rule = BiasRule::normalized}, bias, load, 6),
             {0, 0.4 / rms, 0.2 / rms, 0.6 / rms});
}

constexpr Index tokens = 480, experts = 8;

/// Logits of which later experts have the larger ones.
Matrix skewed(unsigned seed, Index count = tokens) {
  const auto z = random<Matrix>(seed, count, experts);
  for (Index t = 0; t < count; ++t) {
    for (Index e = 0; e < experts; ++e) z(t, e) += 0.3 * double(e);
  }
  return z;
}

/// A router of given logits with its bias, and its loads.
template <class Router>
struct Balanced {
  Router router;
  typename Router::template Buffers<double, Space> buffers;
  moe::Context<Space> ctx;
  moe::Routing<double, Space> routing;

  explicit Balanced(const Router& r) : router(r), buffers(router.template buffers<double, Space>({experts, experts})) {}
  void route(const Matrix& logits) {
    moe::Batch<double, Space> batch;
    batch.x = Matrix("x", logits.extent(0), 1);
    batch.router_input = logits;
    router.forward(ctx, batch, {}, buffers, experts, routing);
  }
  moe::DispatchPlan<Space> plan() const {
    moe::DispatchPlan<Space> result;
    result.tokens = routing.assignments.tokens;
    result.experts = experts;
    result.routed = moe::Vector<Index, Space>("routed", experts);
    for (Index a = 0; a < routing.assignments.bound; ++a) {
      if (routing.assignments.expert(a) != moe::no_expert) result.routed(routing.assignments.expert(a)) += 1;
    }
    return result;
  }
  void update(const moe::LoadStatistics<Space>& loads) {
    router.update_balance(ctx, buffers, moe::Vector<const Index, Space>(loads.counts()),
                          moe::Vector<const Index, Space>(loads.tokens()));
  }
  /// The loads of a batch after training the bias on it.
  std::vector<Index> train(const Matrix& logits, int steps) {
    moe::LoadStatistics<Space> loads(experts);
    for (int s = 0; s < steps; ++s) {
      route(logits);
      loads.reset();
      loads.add(plan());
      update(loads);
    }
    route(logits);
    return moe::detail::to_host(plan().routed);
  }
};

using TopTwo = moe::Router<moe::GivenLogits, moe::Sigmoid, moe::TopK<2>, moe::BiasBalancer>;

TEST_CASE("Every rule brings uneven logits to balance") {
  const auto z = skewed(1);
  Balanced<TopTwo> none(TopTwo{moe::BiasBalancer{0}});
  CHECK(moe::maximum_violation(none.train(z, 1)) > 1.5);
  const auto check = [&](const moe::BiasBalancer& balancer) {
    Balanced<TopTwo> balanced(TopTwo{balancer});
    CHECK(moe::maximum_violation(balanced.train(z, 400)) < 0.1);
  };
  check({2e-3});
  check({2e-2, BiasRule::proportional});
  check({2e-3, BiasRule::normalized});
  check({.rate = 2e-3, .limit = 0.5});
}

TEST_CASE("Groups are balanced apart: a group's total stays as it was") {
  const auto z = skewed(1);
  Balanced<TopTwo> balanced(TopTwo{moe::BiasBalancer{.rate = 2e-3, .groups = 2}});
  const auto loads = balanced.train(z, 400);
  CHECK(moe::maximum_violation(std::vector<Index>(loads.begin(), loads.begin() + 4)) < 0.2);
  CHECK(moe::maximum_violation(std::vector<Index>(loads.begin() + 4, loads.end())) < 0.2);
  CHECK(moe::maximum_violation(loads) > 0.5);
}

TEST_CASE("A small limit and a large decay leave some imbalance") {
  const auto z = skewed(1);
  Balanced<TopTwo> clipped(TopTwo{moe::BiasBalancer{.rate = 2e-3, .limit = 0.05}});
  CHECK(moe::maximum_violation(clipped.train(z, 400)) > 0.5);
  for (Index e = 0; e < experts; ++e) CHECK(std::abs(clipped.buffers.balance_bias(e)) <= 0.05);
  Balanced<TopTwo> decayed(TopTwo{moe::BiasBalancer{.rate = 2e-3, .decay = 0.1}});
  CHECK(moe::maximum_violation(decayed.train(z, 400)) > 0.5);
}

TEST_CASE("Counts of two microbatches, or of two ranks, move a bias as one batch does") {
  const auto z = skewed(2);
  const auto half = [&](Index part) {
    Matrix result("half", tokens / 2, experts);
    std::copy_n(z.data() + part * Index(result.size()), result.size(), result.data());
    return result;
  };
  const moe::BiasBalancer balancer{1e-2, BiasRule::proportional};
  Balanced<TopTwo> one(TopTwo{balancer}), two(TopTwo{balancer}), ranks(TopTwo{balancer});
  moe::LoadStatistics<Space> loads;
  one.route(z);
  loads.add(one.plan());
  one.update(loads);

  loads.reset();
  for (Index part = 0; part < 2; ++part) {
    two.route(half(part));
    loads.add(two.plan());
  }
  two.update(loads);
  CHECK(same_bits(one.buffers.balance_bias, two.buffers.balance_bias));

  ranks.route(half(0));
  moe::LoadStatistics<Space> mine, theirs;
  mine.add(ranks.plan());
  ranks.route(half(1));
  theirs.add(ranks.plan());
  mine.all_reduce([&](const Space&, const moe::Vector<Index, Space>& values) {
    for (Index e = 0; e < experts; ++e) values(e) += theirs.counts()(e);
    values(experts) += theirs.tokens()(0);
  });
  ranks.update(mine);
  CHECK(same_bits(one.buffers.balance_bias, ranks.buffers.balance_bias));

  loads.reset();
  CHECK(loads.tokens()(0) == 0);
  CHECK_THROWS_AS(loads.add(moe::LoadStatistics<Space>(experts + 1)), moe::ShapeError);
  CHECK_THROWS_AS(moe::LoadStatistics<Space>(0), moe::ConfigError);
}

using Free = moe::Router<moe::GivenLogits, moe::Sigmoid, moe::Threshold, moe::QuotaBalancer>;

Free free_router(const moe::QuotaBalancer& balancer) {
  return Free{moe::Threshold{.threshold = 0.5, .cap = int(experts)}, balancer};
}

TEST_CASE("Quotas in proportion find the quantiles that a batch gives at once") {
  const auto z = skewed(3);
  Balanced<Free> stepped(free_router({.k = 2, .rate = 5e-3, .rule = BiasRule::proportional})), direct(free_router({}));
  const auto loads = stepped.train(z, 1000);
  for (Index n : loads) CHECK(double(n) == Approx(120).margin(4));

  direct.route(z);
  const moe::QuantileBias quantile{.k = 2, .threshold = 0.5};
  quantile.move(direct.ctx, direct.routing, {}, direct.buffers.balance_bias);
  direct.route(z);
  for (Index e = 0; e < experts; ++e) {
    CHECK(direct.plan().routed(e) == 120);  // k / E of 480 tokens
    CHECK(direct.buffers.balance_bias(e) == Approx(stepped.buffers.balance_bias(e)).margin(0.01));
  }
}

TEST_CASE("A quantile's bias follows its batches by its rate, and sees no padding") {
  auto z = skewed(4);
  moe::Vector<std::uint8_t, Space> mask("mask", tokens);
  for (Index t = 0; t < 2 * tokens / 3; ++t) mask(t) = 1;
  for (Index t = 2 * tokens / 3; t < tokens; ++t) z(t, 0) = 100;
  Balanced<Free> whole(free_router({})), part(free_router({}));
  whole.route(z);
  Matrix live("live", 2 * tokens / 3, experts);
  std::copy_n(z.data(), live.size(), live.data());
  part.route(live);
  const moe::QuantileBias quantile{.k = 3, .threshold = 0.5};
  quantile.move(whole.ctx, whole.routing, mask, whole.buffers.balance_bias);
  quantile.move(part.ctx, part.routing, {}, part.buffers.balance_bias);
  CHECK(same_bits(whole.buffers.balance_bias, part.buffers.balance_bias));

  const auto target = clone(part.buffers.balance_bias);
  Kokkos::deep_copy(part.buffers.balance_bias, 0.25);
  moe::QuantileBias{.k = 3, .threshold = 0.5, .rate = 0.1}.move(part.ctx, part.routing, {}, part.buffers.balance_bias);
  for (Index e = 0; e < experts; ++e) CHECK(part.buffers.balance_bias(e) == Approx(0.9 * 0.25 + 0.1 * target(e)));

  const auto before = clone(part.buffers.balance_bias);
  part.route(Matrix("z", 0, experts));
  quantile.move(part.ctx, part.routing, {}, part.buffers.balance_bias);  // nothing seen: it stays
  CHECK(same_bits(before, part.buffers.balance_bias));
  CHECK_THROWS_AS((moe::QuantileBias{.k = 9}.move(part.ctx, part.routing, {}, part.buffers.balance_bias)),
                  moe::ConfigError);
  CHECK_THROWS_AS(quantile.move(part.ctx, part.routing, {}, moe::Vector<double, Space>("bias", 3)), moe::ShapeError);
}

TEST_CASE("Where all scores are equal, a quantile lets no more than its quota in") {
  Balanced<Free> same(free_router({}));
  same.route(Matrix("z", tokens, experts));
  const moe::QuantileBias quantile{.k = 2, .threshold = 0.5};
  quantile.move(same.ctx, same.routing, {}, same.buffers.balance_bias);
  same.route(Matrix("z", tokens, experts));
  for (Index e = 0; e < experts; ++e) CHECK(same.plan().routed(e) <= 120);
}

}  // namespace balancers_test
