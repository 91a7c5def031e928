// Losses on loads: equations written out in double, gradients, and what they cost at balance and at collapse.
#include <moe/balance/load.hpp>
#include <moe/balance/losses.hpp>
#include <moe/balance/pooled_balance_loss.hpp>
#include <moe/balance/straight_through_loss.hpp>

#include "moe_test/balance.hpp"

namespace balance_losses_test {

using namespace moe_test;
using namespace moe_test::balance;

double largest_difference(const Matrix& a, const Matrix& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a.data()[i] - b.data()[i]));
  return worst;
}

TEST_CASE("Switch, GShard and DeepSeek's losses have the documented values, and gradients") {
  Routed<TopTwo> even(balanced_logits()), two(collapsed_logits());
  for (auto* routed : {&even, &two}) routed->batch.sequence_offsets = indices<Space>({0, 4, 8, 12});
  const double e = double(experts);
  const auto check = [&](const auto& loss, double at_balance, double at_collapse) {
    CHECK(even.value(loss) == Approx(at_balance));
    CHECK(two.value(loss) == Approx(at_collapse));
    check_differences<TopTwo>(loss);
    check_batches<TopTwo>(loss);
  };
  check(moe::SwitchBalanceLoss(1), 1, e / 2);  // of two experts each has half of P, one all of f
  check(moe::SwitchBalanceLoss(1, moe::Count::all), 2, e);
  check(moe::SwitchBalanceLoss(1, moe::Count::first_choice, moe::Scope::sequence()), 1, e / 2);
  check(moe::GShardBalanceLoss(1), 1 / (e * e), 1 / (2 * e));
  check(moe::ExpertBalanceLoss(1), 1, e / 2);
  check(moe::SequenceBalanceLoss(1), 1, e / 2);
  check(moe::DeviceBalanceLoss(1, 2), 1, 2);
  const auto groups = moe::SwitchBalanceLoss(1, moe::Count::first_choice, moe::Scope::groups_of(4));
  CHECK(even.value(groups) == Approx(1));
  CHECK(two.value(groups) == Approx(e / 2));
  check_differences<TopTwo>(groups);
}

TEST_CASE("Communication is balanced where every device gets tokens once each") {
  Matrix z("z", tokens, experts);
  for (Index t = 0; t < tokens; ++t) z(t, t % 2 * 2) = z(t, t % 2 * 2 + 1) = 9;  // both experts of device t % 2
  Routed<TopTwo> even(z), spread(balanced_logits()), one(collapsed_logits());
  const moe::CommunicationBalanceLoss loss(1, 2, 1);
  CHECK(even.value(loss) == Approx(1));
  CHECK(one.value(loss) == Approx(2));       // devices / M
  CHECK(spread.value(loss) == Approx(1.5));  // each device gets three of four tokens
  CHECK(spread.value(moe::CommunicationBalanceLoss(1, 2, 2)) == Approx(0.75));
  check_differences<TopTwo>(loss);
  check_batches<TopTwo>(loss);
  CHECK_THROWS_AS(even.value(moe::CommunicationBalanceLoss(1, 3, 1)), moe::ConfigError);
  CHECK_THROWS_AS(even.value(moe::CommunicationBalanceLoss(1, 2, 0)), moe::ConfigError);
  CHECK_THROWS_AS(even.value(moe::DeviceBalanceLoss(1, 0)), moe::ConfigError);
}

/// A user's function of the load: the sum of cubes.
struct LoadCubes {
  double factor = 1;
  KOKKOS_FUNCTION double value(moe::Row<const double> load) const {
    double sum = 0;
    for (Index e = 0; e < load.size; ++e) sum += load[e] * load[e] * load[e];
    return factor * sum;
  }
  KOKKOS_FUNCTION double slope(moe::Row<const double> load, Index e) const { return 3 * factor * load[e] * load[e]; }
};

/// Value and gradient of a straight-through loss, written out.
template <class Function>
void check_straight_through(const Function& function, moe::Scope scope) {
  auto routed = padded<TopTwo>();
  const moe::StraightThroughLoss<Function> loss(0.7, function, scope);
  const std::vector<Index> bounds =
      scope.kind == moe::Scope::Kind::batch ? std::vector<Index>{0, tokens} : std::vector<Index>{0, 5, 7, 12};
  const double groups = double(bounds.size() - 1);
  double expected = 0;
  const auto gradient = routed.gradient(loss);
  for (std::size_t g = 0; g + 1 < bounds.size(); ++g) {
    std::vector<double> load(experts);
    double n = 0;
    for (Index t = bounds[g]; t < bounds[g + 1]; ++t) {
      if (t == 2 || t == 6) continue;
      n += 1;
      for (Index i = 2 * t; i < 2 * t + 2; ++i) load[routed.routing.assignments.expert(i)] += 1;
    }
    for (double& l : load) l /= n > 0 ? 2 * n : 1;
    const moe::Row<const double> row{load.data(), experts};
    if (n > 0) expected += 0.7 * function.value(row) / groups;
    for (Index t = bounds[g]; t < bounds[g + 1]; ++t) {
      double total = 0, mean = 0;
      for (Index e = 0; e < experts; ++e) total += std::exp(routed.logits(t, e));
      const auto p = [&](Index e) { return std::exp(routed.logits(t, e)) / total; };
      for (Index e = 0; e < experts; ++e) mean += p(e) * function.slope(row, e);
      for (Index e = 0; e < experts; ++e) {
        const double slope = t == 2 || t == 6 ? 0 : 0.7 * p(e) * (function.slope(row, e) - mean) / (n * groups);
        CHECK(gradient(t, e) == Approx(slope).margin(1e-13));
      }
    }
    for (Index e = 0; e < experts && n > 0; ++e) {  // the slope is the value's, where it is smooth
      if (load[e] == 0) continue;
      auto up = load, down = load;
      up[e] += 1e-6, down[e] -= 1e-6;
      const double difference = function.value({up.data(), experts}) - function.value({down.data(), experts});
      CHECK(difference / 2e-6 == Approx(function.slope(row, e)).epsilon(1e-6));
    }
  }
  CHECK(routed.value(loss) == Approx(expected));
  check_batches<TopTwo>(loss);
}

TEST_CASE("A function of the load is a loss with the gradient of the mean probabilities") {
  check_straight_through(moe::LoadSquares{}, moe::Scope::batch());
  check_straight_through(moe::LoadSquares{}, moe::Scope::sequence());
  check_straight_through(moe::LoadEntropy{}, moe::Scope::batch());
  check_straight_through(moe::LoadEntropy{}, moe::Scope::sequence());
  check_straight_through(LoadCubes{2}, moe::Scope::batch());

  Routed<TopTwo> even(balanced_logits()), two(collapsed_logits());
  const double e = double(experts);
  CHECK(even.value(moe::StraightThroughLoss(1, moe::LoadSquares{})) == Approx(0.5));
  CHECK(two.value(moe::StraightThroughLoss(1, moe::LoadSquares{})) == Approx(e / 4));
  CHECK(even.value(moe::StraightThroughLoss(1, moe::LoadEntropy{})) == Approx(0).margin(1e-14));
  CHECK(two.value(moe::StraightThroughLoss(1, moe::LoadEntropy{})) == Approx(std::log(e / 2)));
  CHECK(largest_difference(two.gradient(moe::StraightThroughLoss(1, moe::LoadSquares{})),
                           two.gradient(moe::ExpertBalanceLoss(1))) < 1e-14);
  auto some = padded<TopTwo>();
  CHECK(largest_difference(some.gradient(moe::StraightThroughLoss(1, moe::LoadSquares{})),
                           some.gradient(moe::ExpertBalanceLoss(1))) < 1e-14);
}

TEST_CASE("Loads are shares of the choices made where tokens take different numbers of experts") {
  using Some = moe::Router<moe::GivenLogits, moe::Sigmoid, moe::Threshold>;
  Matrix z("z", tokens, experts);  // token t takes 1 + t % 2 experts of 4, all as often
  for (Index t = 0; t < tokens; ++t) {
    for (Index e = 0; e < experts; ++e) z(t, e) = -1;
    z(t, t / 2 % experts) = 1;
    if (t % 2 == 1) z(t, (t / 2 + 2) % experts) = 1;
  }
  Routed<Some> some{z};
  some.router = Some(moe::Threshold{.threshold = 0.5, .cap = 4});
  some.route();
  double counts[experts] = {}, all = 0, squares = 0;
  for (Index t = 0; t < tokens; ++t)
    for (Index e = 0; e < experts; ++e) counts[e] += z(t, e) > 0 ? 1 : 0;
  for (const double n : counts) all += n;
  for (const double n : counts) squares += n / all * n / all;
  CHECK(all == 18);
  CHECK(some.value(moe::StraightThroughLoss<moe::LoadSquares>(1)) == Approx(double(experts) / 2 * squares));
}

/// The plan of a routing, as far as counts are concerned.
moe::DispatchPlan<Space> plan_of(const Routed<TopTwo>& routed) {
  moe::DispatchPlan<Space> plan;
  plan.tokens = routed.batch.tokens();
  plan.experts = experts;
  plan.routed = moe::Vector<Index, Space>("routed", experts);
  for (Index a = 0; a < routed.routing.assignments.bound; ++a) {
    if (routed.routing.assignments.expert(a) != moe::no_expert) plan.routed(routed.routing.assignments.expert(a)) += 1;
  }
  return plan;
}

TEST_CASE("Loads pooled over layers are transformers' loss, its gradient in all layers") {
  const Index layers = 3;
  std::vector<Routed<TopTwo>> routed;
  routed.reserve(layers);
  for (Index l = 0; l < layers; ++l) routed.push_back(padded<TopTwo>(unsigned(10 + l)));
  // All layers' gates concatenated: E * sum_e (choices of e / rows) * (mean probability of e).
  const auto transformers = [&] {
    std::vector<double> counts(experts), mean(experts);
    const double rows = double(layers * (tokens - 2));
    for (auto& layer : routed) {
      layer.route();
      for (Index t = 0; t < tokens; ++t) {
        double total = 0;
        for (Index e = 0; e < experts; ++e) total += std::exp(layer.logits(t, e));
        for (Index e = 0; e < experts && t != 2 && t != 6; ++e) mean[e] += std::exp(layer.logits(t, e)) / total / rows;
        for (Index i = 2 * t; i < 2 * t + 2 && t != 2 && t != 6; ++i)
          counts[layer.routing.assignments.expert(i)] += 1 / rows;
      }
    }
    double sum = 0;
    for (Index e = 0; e < experts; ++e) sum += double(experts) * counts[e] * mean[e];
    return sum;
  };
  moe::LoadStatistics<Space> pooled(experts);
  const moe::PooledBalanceLoss<Space> loss(2.0 / double(layers), pooled.counts());
  CHECK(routed[0].value(loss) == 0);  // nothing is counted yet
  for (auto& layer : routed) pooled.add(plan_of(layer), layer.batch.mask);
  CHECK(pooled.tokens()(0) == layers * (tokens - 2));
  double sum = 0;
  for (auto& layer : routed) sum += layer.value(loss);
  CHECK(sum == Approx(transformers()));
  for (auto& layer : routed) check_gradient(layer.logits, layer.gradient(loss), transformers);
  check_batches<TopTwo>(loss);

  Routed<TopTwo> even(balanced_logits()), two(collapsed_logits());
  for (auto* layer : {&even, &two}) {
    pooled.reset();
    pooled.add(plan_of(*layer));
    CHECK(layer->value(moe::PooledBalanceLoss<Space>(1, pooled.counts())) == Approx(layer == &even ? 1 : 2));
  }
  CHECK_THROWS_AS(even.value(moe::PooledBalanceLoss<Space>(1)), moe::ShapeError);
}

TEST_CASE("The global batch: counts over microbatches and ranks, probabilities of one's own") {
  auto here = padded<TopTwo>(3), there = padded<TopTwo>(4), later = padded<TopTwo>(5);
  moe::LoadStatistics<Space> all(experts), mine;
  const auto of_there = plan_of(there);
  const auto reduce = [&](const Space&, const moe::Vector<Index, Space>& values) {  // a sum over two ranks
    REQUIRE(values.extent(0) == experts + 1);
    for (Index e = 0; e < experts; ++e) values(e) += of_there.routed(e);
    values(experts) += tokens - 2;
  };
  mine.all_reduce(reduce);  // nothing yet: no message
  mine.add(plan_of(here), here.batch.mask);
  mine.all_reduce(reduce);
  all.add(mine);
  all.add(plan_of(later), later.batch.mask);
  CHECK(all.tokens()(0) == 3 * (tokens - 2));
  const moe::PooledBalanceLoss<Space> loss(1, all.counts());
  double expected = 0;
  for (Index e = 0; e < experts; ++e) {
    const double count = double(plan_of(here).routed(e) + of_there.routed(e) + plan_of(later).routed(e));
    double mean = 0;
    for (Index t = 0; t < tokens; ++t) mean += later.routing.scores(t, e) / double(tokens - 2);
    expected += double(experts) * count / double(6 * (tokens - 2)) * mean;
  }
  CHECK(later.value(loss) == Approx(expected));
}

}  // namespace balance_losses_test
