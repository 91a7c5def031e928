// Statistics of balance against a plain recount: microbatches, steps, merging and reducing, long runs.
#include <moe/balance/statistics.hpp>
#include <moe/routing/router.hpp>
#include <moe/routing/simple_logits.hpp>
#include <numeric>
#include <optional>
#include <sstream>

#include "moe_test/cases.hpp"

namespace balance_statistics_test {

using namespace moe_test;
using Space = Kokkos::DefaultHostExecutionSpace;
using Statistics = moe::BalanceStatistics<Space>;
using Router = moe::Router<moe::GivenLogits, moe::Sigmoid, moe::Threshold>;
constexpr Index experts = 6;

/// What a layer's tape has for statistics.
struct Tape {
  moe::Routing<float, Space> routing;
  moe::DispatchPlan<Space> plan;
  moe::Batch<float, Space> batch;
  std::optional<Space> space;
  std::vector<std::vector<Index>> choices;  // of live tokens
  double entropy = 0;                       // their sum
};

/// A microbatch of random logits, by a router that gives tokens 0 to 4 experts; every fifth token is padding.
Tape microbatch(unsigned seed, Index tokens, float towards = 0) {
  Tape tape;
  const auto z = random<moe::Matrix<float, Space>>(seed, tokens, experts);
  for (Index t = 0; t < tokens; ++t) z(t, seed % experts) += towards;
  const auto mask = filled<moe::Vector<std::uint8_t, Space>>(1, tokens);
  for (Index t = 4; t < tokens; t += 5) mask(t) = 0;
  tape.batch.x = moe::Matrix<float, Space>("x", tokens, 1);
  tape.batch.router_input = z;
  tape.batch.mask = mask;
  moe::Context<Space> ctx;
  Router{moe::Threshold{.threshold = 0.55, .cap = 4}}.forward(ctx, tape.batch, {}, {}, experts, tape.routing);
  tape.plan.tokens = tokens;
  tape.plan.experts = experts;
  tape.plan.routed = moe::Vector<Index, Space>("routed", experts);
  const auto& a = tape.routing.assignments;
  for (Index t = 0; t < tokens; ++t) {
    if (mask(t) == 0) continue;
    tape.choices.emplace_back();
    for (Index i = a.begin(t); i < a.end(t); ++i) {
      if (a.expert(i) == moe::no_expert) continue;
      tape.choices.back().push_back(a.expert(i));
      tape.plan.routed(a.expert(i)) += 1;
    }
    double total = 0;
    for (Index e = 0; e < experts; ++e) total += std::exp(double(z(t, e)));
    for (Index e = 0; e < experts; ++e) {
      const double p = std::exp(double(z(t, e))) / total;
      tape.entropy -= p * std::log(p);
    }
  }
  return tape;
}

std::vector<Index> loads_of(const std::vector<const Tape*>& tapes) {
  std::vector<Index> result(experts);
  for (const Tape* tape : tapes) {
    for (const auto& choice : tape->choices) {
      for (Index e : choice) ++result[e];
    }
  }
  return result;
}

/// All of a report, to compare.
std::vector<double> numbers(const moe::BalanceReport& r) {
  std::vector<double> result = {double(r.steps), double(r.tokens), double(r.bucket_steps), r.mean_violation,
                                r.router_entropy};
  const auto add = [&](const auto& values) { result.insert(result.end(), values.begin(), values.end()); };
  add(r.last), add(r.total), add(r.average), add(r.pairs);
  for (const auto& loads : r.history) add(loads);
  return result;
}

void check_same(const moe::BalanceReport& a, const moe::BalanceReport& b) {
  const auto x = numbers(a), y = numbers(b);
  REQUIRE(x.size() == y.size());
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(x[i] == Approx(y[i]).epsilon(1e-12).margin(1e-12));
}

TEST_CASE("Statistics agree with a plain recount") {
  Statistics statistics(experts, {.buckets = 4, .decay = 0.8});
  std::vector<Tape> tapes;
  for (unsigned i = 0; i < 6; ++i) tapes.push_back(microbatch(i, 20 + Index(i), 0.3f));
  std::vector<double> average;
  std::vector<Index> total(experts), pairs(experts * experts), last;
  double violations = 0, entropy = 0;
  Index tokens = 0;
  for (Index step = 0; step < 3; ++step) {
    const Tape &one = tapes[2 * step], &two = tapes[2 * step + 1];
    statistics.add(one);
    statistics.add(two);
    last = loads_of({&one, &two});
    CHECK(moe::detail::to_host(statistics.loads().counts()) == last);
    statistics.end_step();
    CHECK(moe::detail::to_host(statistics.loads().counts()) == std::vector<Index>(experts));
    if (step == 0) average.assign(last.begin(), last.end());
    for (Index e = 0; e < experts; ++e) {
      average[e] = 0.8 * average[e] + 0.2 * double(last[e]);
      total[e] += last[e];
    }
    violations += moe::maximum_violation(last) / 3;
    for (const Tape* tape : {&one, &two}) {
      entropy += tape->entropy;
      tokens += Index(tape->choices.size());
      for (const auto& choice : tape->choices) {
        for (Index i : choice) {
          for (Index j : choice) ++pairs[i * experts + j];
        }
      }
    }
  }
  const auto report = statistics.report();
  CHECK(report.steps == 3);
  CHECK(report.tokens == tokens);
  CHECK(report.last == last);
  CHECK(report.total == total);
  CHECK(report.pairs == pairs);
  CHECK(report.together(1, 2) == Approx(double(pairs[experts + 2]) / double(pairs[experts + 1])));
  CHECK(report.history.size() == 3);
  CHECK(report.history[1] == loads_of({&tapes[2], &tapes[3]}));
  CHECK(report.mean_violation == Approx(violations));
  CHECK(report.last_violation() == Approx(moe::maximum_violation(last)));
  CHECK(report.violations()[2] == report.last_violation());
  CHECK(report.router_entropy == Approx(entropy / double(tokens) / std::log(6.0)).epsilon(1e-6));
  for (Index e = 0; e < experts; ++e) CHECK(report.average[e] == Approx(average[e]));
  CHECK(report.average_violation() == Approx(moe::maximum_violation(average)));
  CHECK(report.total_violation() == Approx(moe::maximum_violation(total)));
}

TEST_CASE("Two merged, or two ranks reduced, are one that saw all") {
  Statistics all(experts), one(experts), two(experts);
  for (unsigned step = 0; step < 5; ++step) {
    const Tape a = microbatch(step, 30), b = microbatch(100 + step, 17);
    all.add(a), all.add(b), one.add(a), two.add(b);
    all.end_step(), one.end_step(), two.end_step();
  }
  auto expected = all.report();
  const auto of_one = one.report(), of_two = two.report();
  expected.mean_violation = (of_one.mean_violation + of_two.mean_violation) / 2;  // of each one's own batches
  int calls = 0;
  const auto reduced = one.report([&](const Space&, const auto& values) {  // as MPI_Allreduce would with another rank
    using Values = std::decay_t<decltype(values)>;
    Values of_other;
    (void)two.report([&](const Space&, const auto& other) {
      if constexpr (std::is_same_v<std::decay_t<decltype(other)>, Values>) of_other = other;
    });
    for (std::size_t i = 0; i < values.size(); ++i) values(i) += of_other(i);
    ++calls;
  });
  CHECK(calls == 2);
  check_same(reduced, expected);
  check_same(one.report(), of_one);  // reducing a report changes nothing
  one.merge(two);
  check_same(one.report(), expected);
  check_same(two.report(), of_two);
  two.end_step();
  CHECK_THROWS_AS(one.merge(two), moe::ShapeError);
  CHECK_THROWS_AS(all.merge(Statistics(experts + 1)), moe::ShapeError);
}

TEST_CASE("Loads reduced before the step ends give violations of the global batch") {
  Statistics all(experts), mine(experts);
  for (unsigned step = 0; step < 3; ++step) {
    const Tape a = microbatch(step, 30, 1), b = microbatch(3 + step, 30, 1);
    all.add(a), all.add(b), mine.add(a);
    mine.loads().all_reduce([&](const Space&, const moe::Vector<Index, Space>& values) {
      for (Index e = 0; e < experts; ++e) values(e) += b.plan.routed(e);
      values(experts) += Index(b.choices.size());
    });
    all.end_step(), mine.end_step();
  }
  CHECK(mine.report().mean_violation == all.report().mean_violation);
  CHECK(mine.report().history == all.report().history);
  CHECK(mine.report().tokens == all.report().tokens);
}

TEST_CASE("A history of any length fits its buckets, and loses no load") {
  const Index steps = 53;
  Statistics statistics(experts, {.buckets = 8, .pairs_of = 0});
  std::vector<std::vector<Index>> loads;
  for (Index step = 0; step < steps; ++step) {
    const Tape tape = microbatch(unsigned(step), 10);
    statistics.add(tape);
    statistics.end_step();
    loads.push_back(loads_of({&tape}));
    const auto report = statistics.report();
    REQUIRE(report.steps == step + 1);
    CHECK(report.history.size() <= 8);
    for (std::size_t b = 0; b < report.history.size(); ++b) {
      std::vector<Index> expected(experts);
      for (Index s = Index(b) * report.bucket_steps; s < std::min(step + 1, Index(b + 1) * report.bucket_steps); ++s) {
        for (Index e = 0; e < experts; ++e) expected[e] += loads[s][e];
      }
      CHECK(report.history[b] == expected);
    }
  }
  const auto report = statistics.report();
  CHECK(report.bucket_steps == 8);
  CHECK(report.history.size() == 7);
  CHECK(report.pairs.empty());
  CHECK(report.together(0, 1) == 0);
}

TEST_CASE("Pairs of every third token are those of these tokens") {
  Statistics some(experts, {.pairs_of = 3});
  const Tape tape = microbatch(1, 40);
  some.add(tape);
  std::vector<Index> pairs(experts * experts);
  const auto& a = tape.routing.assignments;
  for (Index t = 0; t < 40; t += 3) {
    for (Index i = a.begin(t); i < a.end(t); ++i) {
      for (Index j = a.begin(t); j < a.end(t); ++j) {
        if (a.expert(i) != moe::no_expert && a.expert(j) != moe::no_expert)
          ++pairs[a.expert(i) * experts + a.expert(j)];
      }
    }
  }
  CHECK(some.report().pairs == pairs);
  CHECK(some.report().tokens == 0);  // the step has not ended
}

TEST_CASE("Experts without load are dead for as long as they are idle") {
  Statistics statistics(2);
  Tape tape = microbatch(1, 10);
  tape.plan.experts = 2;
  const auto step = [&](Index first, Index second) {
    tape.plan.routed = indices<Space>({first, second});
    statistics.loads().add(tape.plan);
    statistics.end_step();
  };
  CHECK(statistics.report().dead_experts().empty());
  step(5, 5), step(10, 0), step(10, 0);
  const auto report = statistics.report();
  CHECK(report.idle_steps(0) == 0);
  CHECK(report.idle_steps(1) == 2);
  CHECK(report.dead_experts(2) == std::vector<Index>{1});
  CHECK(report.dead_experts(3).empty());
  CHECK(report.last_violation() == Approx(1));
  std::ostringstream text;
  text << report;
  CHECK(text.str().find("1 dead experts") != std::string::npos);
  CHECK(text.str().find("22") != std::string::npos);  // a balanced step
  CHECK(text.str().find("4.") != std::string::npos);  // all on one of two
}

TEST_CASE("No tokens and no steps are no trouble, and sizes are checked") {
  Statistics statistics(experts);
  CHECK(statistics.report().mean_violation == 0);
  CHECK(statistics.report().history.empty());
  statistics.add(microbatch(1, 0));
  statistics.end_step();
  const auto report = statistics.report();
  CHECK(report.steps == 1);
  CHECK(report.last_violation() == 0);
  CHECK(report.router_entropy == 0);
  CHECK_THROWS_AS(Statistics(0), moe::ConfigError);
  CHECK_THROWS_AS(Statistics(4, {.buckets = 3}), moe::ConfigError);
  CHECK_THROWS_AS(Statistics(4, {.decay = 1}), moe::ConfigError);
  CHECK_THROWS_AS(Statistics(experts + 1).add(microbatch(1, 5)), moe::ShapeError);
}

}  // namespace balance_statistics_test
