// Plans made by teams, as devices make them, against those of the host's steps: every array the same.
#include <moe/moe.hpp>

#include "moe_test/cases.hpp"

namespace device_plan_test {

using namespace moe_test;
using Space = Kokkos::DefaultHostExecutionSpace;
using Assignments = moe::Assignments<float, Space>;
using Plan = moe::DispatchPlan<Space>;

/// Assignments of which some are none, some skipped, and some name an expert twice; some experts get nothing.
struct Case {
  Assignments assignments;
  Index experts;

  Case(Index tokens, Index e, Index k, bool ragged, unsigned seed) : experts(e) {
    std::mt19937 engine(seed);
    auto draw = [&](Index end) { return Index(engine() % std::uint64_t(end)); };
    std::vector<Index> offsets{0};
    for (Index t = 0; t < tokens; ++t) offsets.push_back(offsets.back() + (ragged ? draw(k + 1) : k));
    assignments.tokens = tokens;
    assignments.uniform_k = ragged ? 0 : k;
    assignments.bound = offsets.back() + (ragged ? draw(50) : 0);  // a bound is more than there are
    if (ragged) assignments.token_offsets = indices<Space>(offsets);
    assignments.expert = moe::Vector<moe::ExpertId, Space>("expert", assignments.bound);
    assignments.live = moe::Vector<std::uint8_t, Space>("live", assignments.bound);
    const Index used = 1 + draw(experts);
    for (Index a = 0; a < assignments.bound; ++a) {
      assignments.expert(a) = draw(9) == 0 ? moe::no_expert : moe::ExpertId(draw(used));
      assignments.live(a) = draw(4) != 0;
    }
  }
};

/// Rows and token_rows behind the last may hold anything: they are not looked at.
void check_same(const Plan& a, const Plan& b, Index rows) {
  CHECK(same_bits(a.expert_offsets, b.expert_offsets));
  CHECK(same_bits(a.row_token, b.row_token));
  CHECK(same_bits(a.row_assignment, b.row_assignment));
  CHECK(same_bits(a.assignment_row, b.assignment_row));
  CHECK(same_bits(a.token_offsets, b.token_offsets));
  CHECK(same_bits(a.routed, b.routed));
  CHECK(same_bits(a.kept, b.kept));
  for (Index i = 0; i < rows; ++i) {
    if (a.token_rows(i) != b.token_rows(i)) FAIL("token_rows at " << i);
  }
}

Plan garbage(const Assignments& assignments, Index experts, Index rows) {
  Plan plan;
  moe::detail::shape_plan(assignments, experts, rows, plan);
  for (const auto& view : {plan.expert_offsets, plan.row_token, plan.row_assignment, plan.assignment_row,
                           plan.token_offsets, plan.token_rows, plan.routed, plan.kept})
    Kokkos::deep_copy(view, Index(-77));
  return plan;
}

void check(const Case& c, bool skips, bool pads) {
  moe::Context<Space> ctx;
  const auto& assignments = c.assignments;
  moe::Vector<std::uint8_t, Space> kept;
  if (skips) kept = assignments.live;
  Index fixed = -1, rows = assignments.bound;
  if (pads) {
    std::vector<Index> counts(std::size_t(c.experts), 0);
    for (Index a = 0; a < assignments.bound; ++a) {
      if (assignments.expert(a) >= 0) ++counts[std::size_t(assignments.expert(a))];
    }
    fixed = *std::max_element(counts.begin(), counts.end()) + 2;
    rows = fixed * c.experts;
  }
  const Plan steps = garbage(assignments, c.experts, rows), teams = garbage(assignments, c.experts, rows);
  moe::detail::plan_by_steps<float, Space>(ctx, assignments, kept, fixed, steps);
  for (int pass = 0; pass < 2; ++pass) {  // again: the first must have left the counter of teams at 0
    moe::detail::plan_by_teams<float, Space>(ctx, assignments, kept, fixed, teams);
    check_same(steps, teams, steps.token_offsets(assignments.tokens));
  }
  CHECK(ctx.arrivals()() == 0);
}

TEST_CASE("Plans by teams are the plans by steps") {
  unsigned seed = 0;
  for (const Index tokens : {1, 2, 31, 32, 33, 100, 511, 1300}) {
    for (const auto& [experts, k] : {std::pair<Index, Index>{1, 1}, {8, 2}, {60, 4}, {256, 8}}) {
      for (const bool ragged : {false, true}) {
        CAPTURE(tokens, experts, k, ragged);
        const Case c(tokens, experts, k, ragged, ++seed);
        check(c, false, false);
        check(c, true, false);
        check(c, true, true);
      }
    }
  }
}

TEST_CASE("Plans by teams of longer chunks are the same, too") {
  check(Case(20000, 60, 2, false, 1), true, false);
}

TEST_CASE("A plan by teams without tokens is empty") {
  check(Case(0, 5, 2, false, 1), false, false);
  check(Case(0, 5, 2, true, 1), false, false);
  check(Case(0, 5, 2, false, 1), false, true);
}

TEST_CASE("Many experts and long sums are made by steps") {
  Assignments assignments;
  Plan plan;
  plan.experts = 1024;
  CHECK(moe::detail::fits_teams(assignments, plan));
  plan.experts = 1025;
  CHECK_FALSE(moe::detail::fits_teams(assignments, plan));
  plan.experts = 4;
  assignments.bound = Index(1) << 31;
  CHECK_FALSE(moe::detail::fits_teams(assignments, plan));
}

}  // namespace device_plan_test
