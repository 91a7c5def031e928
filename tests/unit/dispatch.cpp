// Properties of every plan, and the order in which capacities drop.
#include <rapidcheck.h>

#include <moe/moe.hpp>

#include "moe_test/cases.hpp"
#include "moe_test/golden.hpp"

namespace dispatch_test {

using namespace moe_test;
using Space = Kokkos::DefaultHostExecutionSpace;
using Assignments = moe::Assignments<float, Space>;

/// Lists of `k` ids (or ragged ones) and weights, drawn by RapidCheck.
Assignments draw_assignments(Index tokens, Index experts, Index k) {
  const bool ragged = *rc::gen::arbitrary<bool>();
  Assignments a;
  a.tokens = tokens;
  a.uniform_k = ragged ? 0 : k;
  std::vector<Index> offsets{0};
  for (Index t = 0; t < tokens; ++t)
    offsets.push_back(offsets.back() + (ragged ? *rc::gen::inRange<Index>(0, k + 1) : k));
  a.bound = offsets.back();
  if (ragged) a.token_offsets = indices<Space>(offsets);
  a.expert = moe::Vector<moe::ExpertId, Space>("expert", a.bound);
  a.weight = moe::Vector<float, Space>("weight", a.bound);
  for (Index i = 0; i < a.bound; ++i) {
    a.expert(i) = *rc::gen::inRange<moe::ExpertId>(-1, moe::ExpertId(experts));
    a.weight(i) = float(*rc::gen::inRange(0, 8)) / 8;  // ties are frequent
  }
  return a;
}

template <class Mode>
void check_plan(const Assignments& a, Index experts, const moe::CapacityPolicy<Mode>& capacity) {
  moe::Context<Space> ctx;
  moe::Batch<float, Space> batch;
  batch.x = moe::Matrix<float, Space>("x", a.tokens, 1);
  moe::DispatchPlan<Space> plan;
  moe::dispatch(ctx, a, batch, experts, capacity, plan);

  std::vector<Index> routed(experts, 0), kept(experts, 0);
  Index live = 0;
  for (Index t = 0; t < a.tokens; ++t) {
    Index next = plan.token_offsets(t);
    for (Index i = a.begin(t); i < a.end(t); ++i) {
      const Index row = plan.assignment_row(i), e = a.expert(i);
      if (e < 0) {
        RC_ASSERT(row == -1);
        continue;
      }
      ++routed[e];
      if (row < 0) continue;
      ++kept[e];
      ++live;
      RC_ASSERT(plan.row_assignment(row) == i);
      RC_ASSERT(plan.row_token(row) == t);
      RC_ASSERT(plan.expert_offsets(e) <= row && row < plan.expert_offsets(e + 1));
      RC_ASSERT(plan.token_rows(next++) == row);
    }
    RC_ASSERT(plan.token_offsets(t + 1) == next);
  }
  RC_ASSERT(plan.expert_offsets(0) == 0);
  Index used = 0;
  for (Index r = 0; r < plan.expert_offsets(experts); ++r) used += plan.row_token(r) >= 0;
  RC_ASSERT(used == live);
  const Index limit =
      capacity.limit(a.tokens, a.uniform_k ? double(a.uniform_k) : double(a.bound) / double(a.tokens), experts);
  for (Index e = 0; e < experts; ++e) {
    RC_ASSERT(plan.routed(e) == routed[e]);
    RC_ASSERT(plan.kept(e) == kept[e]);
    const Index rows = plan.expert_offsets(e + 1) - plan.expert_offsets(e);
    RC_ASSERT(rows == (moe::CapacityPolicy<Mode>::pads ? limit : kept[e]));
    RC_ASSERT(kept[e] == (moe::CapacityPolicy<Mode>::drops ? std::min(limit, routed[e]) : routed[e]));
    for (Index r = plan.expert_offsets(e) + 1; r < plan.expert_offsets(e) + kept[e]; ++r) {
      RC_ASSERT(plan.row_assignment(r - 1) < plan.row_assignment(r));  // token order
    }
  }
}

template <class Mode>
void property() {
  const bool good = rc::check([] {
    const Index tokens = *rc::gen::inRange<Index>(1, 1500), experts = *rc::gen::inRange<Index>(1, 20);
    moe::CapacityPolicy<Mode> capacity;
    capacity.factor = *rc::gen::element(0.25, 1.0, 1.25, 4.0);
    capacity.minimum = *rc::gen::inRange<Index>(0, 5);
    capacity.priority = *rc::gen::element(moe::Priority::position, moe::Priority::choice, moe::Priority::score);
    check_plan(draw_assignments(tokens, experts, *rc::gen::inRange<Index>(1, 4)), experts, capacity);
  });
  CHECK(good);
}

TEST_CASE("Every dropless plan is sound") {
  property<moe::Dropless>();
}
TEST_CASE("Every dropping plan is sound, and keeps as many as fit") {
  property<moe::Drop>();
}
TEST_CASE("Every padded plan is sound") {
  property<moe::Pad>();
}

TEST_CASE("Permuting a dropless batch permutes its output") {
  moe::MoELayer<moe::On<Space>, moe::Router<moe::Sigmoid, moe::TopK<3>>> layer(
      moe::MoEConfig{.hidden = 9, .intermediate = 5, .experts = 6}, moe::Seed{1});
  moe::Context<Space> ctx;
  const bool good = rc::check([&] {
    const Index tokens = 40;
    const auto x = random<moe::Matrix<float, Space>>(*rc::gen::arbitrary<unsigned>(), tokens, 9);
    const auto shift = *rc::gen::inRange<Index>(1, tokens);
    moe::Matrix<float, Space> moved("moved", tokens, 9);
    for (Index t = 0; t < tokens; ++t) {
      for (Index h = 0; h < 9; ++h) moved((7 * t + shift) % tokens, h) = x(t, h);
    }
    const auto y = clone(layer.forward(ctx, x));
    const auto z = layer.forward(ctx, moved);
    for (Index t = 0; t < tokens; ++t) {
      for (Index h = 0; h < 9; ++h) RC_ASSERT(z((7 * t + shift) % tokens, h) == y(t, h));
    }
  });
  CHECK(good);
}

/// Which assignments a priority keeps: ids and weights of three tokens with two choices each, capacity 2.
std::vector<int> kept_under(moe::Priority priority) {
  Assignments a;
  a.tokens = 3;
  a.uniform_k = 2;
  a.bound = 6;
  a.expert = moe::Vector<moe::ExpertId, Space>("expert", 6);
  a.weight = moe::Vector<float, Space>("weight", 6);
  const int ids[] = {0, 1, 1, 0, 0, 1};
  const float weights[] = {0.6f, 0.4f, 0.9f, 0.1f, 0.7f, 0.3f};
  for (int i = 0; i < 6; ++i) a.expert(i) = ids[i], a.weight(i) = weights[i];
  moe::CapacityPolicy<moe::Drop> capacity;
  capacity.tokens_per_expert = 2;
  capacity.priority = priority;
  moe::Context<Space> ctx;
  moe::Batch<float, Space> batch;
  batch.x = moe::Matrix<float, Space>("x", 3, 1);
  moe::DispatchPlan<Space> plan;
  moe::dispatch(ctx, a, batch, 2, capacity, plan);
  std::vector<int> kept;
  for (int i = 0; i < 6; ++i) {
    if (plan.assignment_row(i) >= 0) kept.push_back(i);
  }
  return kept;
}

TEST_CASE("Priorities drop whom they say") {
  CHECK(kept_under(moe::Priority::position) == std::vector<int>{0, 1, 2, 3});
  CHECK(kept_under(moe::Priority::choice) == std::vector<int>{0, 1, 2, 4});
  CHECK(kept_under(moe::Priority::score) == std::vector<int>{0, 1, 2, 4});
}

TEST_CASE("GShard's golden: the kept choices, their order and their weights") {
  const GoldenFile golden("gshard_top2");
  const auto logits = golden.matrix<Space>("logits");  // (S, E)
  const auto expected = golden.file.read<float>("combine.before");
  const auto shape = golden.file.info("combine.before").shape;  // (S, E, C)
  const Index tokens = shape[0], experts = shape[1], places = shape[2];
  moe::Context<Space> ctx;
  moe::Batch<float, Space> batch;
  batch.x = logits;
  moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum> router;
  moe::Routing<float, Space> routing;
  const auto identity = identity_weight<Space>(experts);
  router.forward(ctx, batch, {identity}, {}, experts, routing);
  moe::CapacityPolicy<moe::Drop> capacity;
  capacity.tokens_per_expert = places;
  capacity.priority = moe::Priority::choice;
  moe::DispatchPlan<Space> plan;
  moe::dispatch(ctx, routing.assignments, batch, experts, capacity, plan);
  for (Index t = 0; t < tokens; ++t) {
    for (Index e = 0; e < experts; ++e) {
      double ours = 0, theirs = 0;
      for (Index a = 2 * t; a < 2 * t + 2; ++a) {
        if (routing.assignments.expert(a) == e && plan.assignment_row(a) >= 0) ours += routing.assignments.weight(a);
      }
      for (Index c = 0; c < places; ++c) theirs += expected[(t * experts + e) * places + c];
      CHECK(ours == Approx(theirs).margin(1e-6));
    }
  }
}

}  // namespace dispatch_test
