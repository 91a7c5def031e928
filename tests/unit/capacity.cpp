// Who capacities keep: against goldens and a plain implementation.
#include <rapidcheck.h>

#include <moe/dispatch/published_capacities.hpp>
#include <moe/moe.hpp>
#include <numeric>

#include "moe_test/cases.hpp"
#include "moe_test/golden.hpp"

namespace capacity_test {

using namespace moe_test;
using moe::Priority;
using Space = Kokkos::DefaultHostExecutionSpace;
using Assignments = moe::Assignments<float, Space>;
using Drop = moe::CapacityPolicy<moe::Drop>;
using Pad = moe::CapacityPolicy<moe::Pad>;
using Context = moe::Context<Space>;
using Kept = std::vector<bool>;
namespace published = moe::published_capacities;

// --------------------------------------------------------------------------------------------------- who is kept

/// A batch of one group or of sequences, some tokens of it padding.
struct Problem {
  Index experts = 0;
  Assignments assignments;
  moe::Batch<float, Space> batch;
  std::vector<Index> sequences;  // offsets
};

/// K choices a token (or ragged lists), about one in five none, skipped or padding; weights with many ties.
Problem draw_problem(unsigned seed, Index tokens, Index experts, Index k, bool ragged, bool skips, bool pads) {
  std::mt19937 engine(seed);
  const auto below = [&](Index n) { return Index(engine() % std::uint32_t(n)); };
  Problem p;
  p.experts = experts;
  Assignments& a = p.assignments;
  a.tokens = tokens;
  a.uniform_k = ragged ? 0 : k;
  std::vector<Index> offsets{0};
  for (Index t = 0; t < tokens; ++t) offsets.push_back(offsets.back() + (ragged ? below(k + 1) : k));
  a.bound = offsets.back();
  if (ragged) a.token_offsets = indices<Space>(offsets);
  a.expert = moe::Vector<moe::ExpertId, Space>("expert", a.bound);
  a.weight = moe::Vector<float, Space>("weight", a.bound);
  if (skips) a.live = moe::Vector<std::uint8_t, Space>("live", a.bound);
  const moe::Vector<std::uint8_t, Space> mask("mask", tokens);
  for (Index t = 0; t < tokens; ++t) {
    mask(t) = !pads || below(5) != 0;
    for (Index i = a.begin(t); i < a.end(t); ++i) {
      a.expert(i) = moe::ExpertId(mask(t) == 0 || below(5) == 0 ? -1 : below(experts));
      a.weight(i) = float(below(8)) / 8;
      if (skips) a.live(i) = below(5) != 0;
    }
  }
  p.batch.x = moe::Matrix<float, Space>("x", tokens, 1);
  if (pads) p.batch.mask = mask;
  p.sequences = {0};
  while (p.sequences.back() < tokens) p.sequences.push_back(std::min(tokens, p.sequences.back() + below(40)));
  if (tokens == 0) p.sequences.push_back(0);
  p.batch.sequence_offsets = indices<Space>(p.sequences);
  return p;
}

double mean_choices(const Assignments& a) {
  return a.uniform_k != 0 ? double(a.uniform_k) : double(a.bound) / double(std::max<Index>(a.tokens, 1));
}

template <class Mode>
Kept kept_by(Context& ctx, const Problem& p, const moe::CapacityPolicy<Mode>& capacity,
             moe::DispatchPlan<Space>* result = nullptr) {
  moe::DispatchPlan<Space> plan;
  moe::dispatch(ctx, p.assignments, p.batch, p.experts, capacity, plan);
  if (result != nullptr) *result = plan;
  Kept kept(p.assignments.bound);
  for (Index i = 0; i < p.assignments.bound; ++i) kept[i] = plan.assignment_row(i) >= 0;
  return kept;
}

/// The assignments of exempt sequences: all that a capacity of zero keeps.
Kept exempt_in(Context& ctx, const Problem& p, double fraction) {
  return kept_by(ctx, p,
                 Drop{.factor = 1e-9, .rounding = moe::Rounding::floor, .minimum = 0, .exempt_fraction = fraction});
}

/// The same by sorting: exempt ones first, then in the order that the priority says.
Kept plain(const Context& ctx, const Problem& p, const Drop& capacity, const Kept& exempt) {
  struct Entry {
    Index token, rank, a;
  };
  const Assignments& a = p.assignments;
  const moe::RandomKey key{ctx.seed, ctx.step, 0, moe::Purpose::shuffle};
  const Index parts = capacity.devices > 0 ? capacity.devices : p.experts;
  std::vector<Index> bounds{0, a.tokens};
  if (capacity.scope.kind == moe::Scope::Kind::sequence) bounds = p.sequences;
  Kept kept(a.bound, false);
  for (std::size_t g = 0; g + 1 < bounds.size(); ++g) {
    std::vector<Entry> queue;
    Index live = 0;
    for (Index t = bounds[g]; t < bounds[g + 1]; ++t) {
      live += !p.batch.mask.is_allocated() || p.batch.mask(t) != 0;
      for (Index i = a.begin(t); i < a.end(t); ++i) {
        if (a.expert(i) >= 0 && (!a.live.is_allocated() || a.live(i) != 0)) queue.push_back({t, i - a.begin(t), i});
      }
    }
    const auto order = [&](const Entry& e) {  // small ones first
      const auto rank = double(e.rank);
      if (capacity.priority == Priority::position) return std::pair(0.0, 0.0);
      if (capacity.priority == Priority::choice) return std::pair(rank, 0.0);
      if (capacity.priority == Priority::score) return std::pair(-double(a.weight(e.a)), 0.0);
      if (capacity.priority == Priority::batch) return std::pair(rank, -double(a.weight(a.begin(e.token))));
      return std::pair(rank, -double(moe::random_bits(key, e.token + ctx.first_token, std::uint32_t(e.rank))));
    };
    std::stable_sort(queue.begin(), queue.end(), [&](const Entry& x, const Entry& y) { return order(x) < order(y); });
    std::stable_partition(queue.begin(), queue.end(), [&](const Entry& e) { return bool(exempt[e.a]); });
    std::vector<Index> used(parts, 0);
    const Index limit = capacity.limit(live, mean_choices(a), p.experts);
    for (const Entry& e : queue) {
      Index& places = used[a.expert(e.a) / (p.experts / parts)];
      if (exempt[e.a] || places < limit) kept[e.a] = true, ++places;
    }
  }
  return kept;
}

constexpr Priority priorities[] = {Priority::position, Priority::choice, Priority::score, Priority::batch,
                                   Priority::random};

TEST_CASE("Every priority keeps what a plain queue keeps, and never more than the limit") {
  const bool good = rc::check([] {
    const Index tokens = *rc::gen::inRange<Index>(0, 700), experts = 2 * *rc::gen::inRange<Index>(1, 10);
    const Problem p =
        draw_problem(*rc::gen::arbitrary<unsigned>(), tokens, experts, *rc::gen::inRange<Index>(1, 5),
                     *rc::gen::arbitrary<bool>(), *rc::gen::arbitrary<bool>(), *rc::gen::arbitrary<bool>());
    Drop capacity{.factor = *rc::gen::element(0.25, 0.8, 1.25),
                  .rounding = *rc::gen::element(moe::Rounding::ceiling, moe::Rounding::nearest),
                  .scope = *rc::gen::element(moe::Scope::batch(), moe::Scope::sequence()),
                  .devices = *rc::gen::element<Index>(0, 1, 2),
                  .exempt_fraction = *rc::gen::element(0.0, 0.4)};
    Context ctx;
    ctx.seed = *rc::gen::arbitrary<std::uint64_t>();
    ctx.first_token = *rc::gen::inRange<Index>(0, 5000);
    const Kept exempt = exempt_in(ctx, p, capacity.exempt_fraction);
    for (Priority priority : priorities) {
      capacity.priority = priority;
      moe::DispatchPlan<Space> plan;
      const Kept kept = kept_by(ctx, p, capacity, &plan);
      RC_ASSERT(kept == plain(ctx, p, capacity, exempt));
      std::vector<Index> routed(experts, 0), live(experts, 0);
      for (Index i = 0; i < p.assignments.bound; ++i) {
        const Index e = p.assignments.expert(i);
        if (e >= 0) ++routed[e], live[e] += kept[i];
        if (kept[i]) RC_ASSERT(e >= 0 && p.assignments.is_live(i));
      }
      for (Index e = 0; e < experts; ++e) {
        RC_ASSERT(plan.routed(e) == routed[e]);  // skipped ones count
        RC_ASSERT(plan.kept(e) == live[e]);
        if (capacity.scope.kind == moe::Scope::Kind::batch && capacity.devices == 0 && capacity.exempt_fraction == 0) {
          RC_ASSERT(live[e] <= capacity.limit(tokens, mean_choices(p.assignments), experts));
        }
      }
    }
  });
  CHECK(good);
}

TEST_CASE("Padded extents keep the same assignments") {
  const bool good = rc::check([] {
    const Problem p =
        draw_problem(*rc::gen::arbitrary<unsigned>(), *rc::gen::inRange<Index>(0, 300), 6, 3,
                     *rc::gen::arbitrary<bool>(), *rc::gen::arbitrary<bool>(), *rc::gen::arbitrary<bool>());
    Context ctx;
    for (Priority priority : priorities) {
      const Drop drop{.factor = 0.8, .rounding = moe::Rounding::nearest, .multiple = 2, .priority = priority};
      const Pad pad{.factor = 0.8, .rounding = moe::Rounding::nearest, .multiple = 2, .priority = priority};
      RC_ASSERT(kept_by(ctx, p, pad) == kept_by(ctx, p, drop));
    }
  });
  CHECK(good);
}

TEST_CASE("Skipped assignments get no row, take no place and count as routed") {
  Problem p = draw_problem(1, 60, 4, 2, false, true, false);
  Context ctx;
  moe::DispatchPlan<Space> plan;
  const Kept kept = kept_by(ctx, p, moe::CapacityPolicy<moe::Dropless>{}, &plan);
  Index routed = 0, live = 0;
  for (Index i = 0; i < p.assignments.bound; ++i) {
    const bool asks = p.assignments.expert(i) >= 0, stays = asks && p.assignments.live(i) != 0;
    CHECK(kept[i] == stays);
    routed += asks;
    live += stays;
  }
  CHECK(routed > live);
  CHECK(plan.expert_offsets(4) == live);
  CHECK(plan.token_offsets(60) == live);
  CHECK(std::accumulate(plan.kept.data(), plan.kept.data() + 4, Index(0)) == live);
  CHECK(std::accumulate(plan.routed.data(), plan.routed.data() + 4, Index(0)) == routed);
  p.assignments.live = moe::Vector<std::uint8_t, Space>("short", 3);
  CHECK_THROWS_AS(kept_by(ctx, p, Drop{}), moe::ShapeError);
}

// ------------------------------------------------------------------------------------------------------ goldens

/// The choices that a router makes of a golden's logits.
template <class Router>
Problem route(const GoldenFile& golden) {
  Problem p;
  p.batch.x = golden.matrix<Space>("logits");
  p.experts = p.batch.x.extent(1);
  Context ctx;
  moe::Routing<float, Space> routing;
  const auto identity = identity_weight<Space>(p.experts);
  Router{}.forward(ctx, p.batch, {identity}, {}, p.experts, routing);
  p.assignments = routing.assignments;
  return p;
}

TEST_CASE("Choice and batch priority agree with their goldens") {
  const GoldenFile golden("topk_capacity");
  const Problem p = route<moe::Router<moe::Softmax, moe::TopK<2>>>(golden);
  Context ctx;
  const auto check = [&](Priority priority, const char* name) {
    const Kept kept = kept_by(ctx, p, Drop{.tokens_per_expert = 8, .priority = priority});
    const auto expected = golden.file.read<float>(name);
    REQUIRE(kept.size() == expected.size());
    for (std::size_t i = 0; i < kept.size(); ++i) CHECK(kept[i] == (expected[i] != 0));
  };
  check(Priority::choice, "keep.order");
  check(Priority::batch, "keep.bpr");
  CHECK(golden.file.read<float>("keep.order") != golden.file.read<float>("keep.bpr"));
}

/// Compares weights summed over places with GShard's combine tensor.
void check_combine(const GoldenFile& golden, const char* name, const Problem& p, Drop capacity) {
  const auto expected = golden.file.read<float>(name);
  const auto shape = golden.file.info(name).shape;  // (S, E, C)
  capacity.tokens_per_expert = shape[2];
  Context ctx;
  moe::DispatchPlan<Space> plan;
  kept_by(ctx, p, capacity, &plan);
  moe::Vector<float, Space> weight = p.assignments.weight;
  if (capacity.renormalize != moe::Renormalize::never) {
    weight = moe::Vector<float, Space>("weight", p.assignments.bound);
    moe::renormalize(ctx, p.assignments, plan, capacity.renormalize, weight);
  }
  for (Index t = 0; t < Index(shape[0]); ++t) {
    for (Index e = 0; e < Index(shape[1]); ++e) {
      double ours = 0, theirs = 0;
      for (Index i = 2 * t; i < 2 * t + 2; ++i) {
        if (p.assignments.expert(i) == e && plan.assignment_row(i) >= 0) ours += weight(i);
      }
      for (Index c = 0; c < Index(shape[2]); ++c) theirs += expected[(t * shape[1] + e) * shape[2] + c];
      CHECK(ours == Approx(theirs).margin(1e-6));
    }
  }
}

TEST_CASE("GShard's goldens: weights before drops, after them, and with second choices skipped at random") {
  const GoldenFile golden("gshard_top2");
  Problem p = route<moe::Router<moe::Softmax, moe::TopK<2>, moe::NormalizeSum>>(golden);
  check_combine(golden, "combine.before", p, published::gshard_paper());
  const Problem raw = route<moe::Router<moe::Softmax, moe::TopK<2>>>(golden);
  for (const Drop& capacity : {published::fairscale(), published::deepspeed(), published::nllb()}) {
    check_combine(golden, "combine.after", raw, capacity);
  }
  CHECK(published::deepspeed(1, Priority::random).renormalize == moe::Renormalize::never);
  const auto uniform = golden.file.read<float>("uniform");
  p.assignments.live = moe::Vector<std::uint8_t, Space>("live", p.assignments.bound);
  for (Index t = 0; t < p.assignments.tokens; ++t) {
    p.assignments.live(2 * t) = 1;
    p.assignments.live(2 * t + 1) = 2 * p.assignments.weight(2 * t + 1) > uniform[t];
  }
  check_combine(golden, "combine.random2", p, published::gshard_paper());
}

// ------------------------------------------------------------------------------------------------ random priority

TEST_CASE("Random priority is fair, and changes with seed, step, layer and nothing else") {
  const Index tokens = 40, steps = 400;
  Problem p = draw_problem(1, tokens, 2, 2, false, false, false);
  for (Index t = 0; t < tokens; ++t) p.assignments.expert(2 * t) = 0, p.assignments.expert(2 * t + 1) = 1;
  const Drop capacity{.tokens_per_expert = 10, .priority = Priority::random};
  Context ctx;
  std::vector<Index> first(tokens, 0);
  Index both = 0;
  for (Index step = 0; step < steps; ++step) {
    ctx.step = step;
    const Kept kept = kept_by(ctx, p, capacity);
    for (Index t = 0; t < tokens; ++t) first[t] += kept[2 * t], both += kept[2 * t] && kept[2 * t + 1];
  }
  for (Index t = 0; t < tokens; ++t) CHECK(std::abs(double(first[t]) - 100) < 5 * std::sqrt(75.0));  // binomial
  CHECK(std::abs(double(both) / double(steps) - 2.5) < 0.5);  // ranks are drawn apart: 40 / 16

  const Kept once = kept_by(ctx, p, capacity);
  CHECK(kept_by(ctx, p, capacity) == once);
  ctx.training = false;
  CHECK(kept_by(ctx, p, capacity) == once);
  ctx.seed = 1;
  CHECK(kept_by(ctx, p, capacity) != once);
  ctx.seed = 0;
  moe::DispatchPlan<Space> plan;
  moe::dispatch(ctx, p.assignments, p.batch, p.experts, capacity, plan, 3);
  Kept other(p.assignments.bound);
  for (Index i = 0; i < p.assignments.bound; ++i) other[i] = plan.assignment_row(i) >= 0;
  CHECK(other != once);
}

// ---------------------------------------------------------------------------------- devices and exempt sequences

TEST_CASE("Experts of a device share its budget, and the lowest weights go") {
  Problem p = draw_problem(1, 6, 4, 1, false, false, false);
  const int ids[] = {0, 0, 0, 1, 2, 3};
  const float weights[] = {0.9f, 0.5f, 0.8f, 0.6f, 0.1f, 0.2f};
  for (Index t = 0; t < 6; ++t) p.assignments.expert(t) = ids[t], p.assignments.weight(t) = weights[t];
  Context ctx;
  const Drop capacity = published::deepseek_v2(2);  // 3 a device
  ctx.training = false;                             // nobody is exempt
  CHECK(kept_by(ctx, p, capacity) == Kept{true, false, true, true, true, true});
  const Drop by_expert{.factor = 1, .priority = Priority::score};  // 2 an expert
  CHECK(kept_by(ctx, p, by_expert) == Kept{true, false, true, true, true, true});
  p.assignments.expert(3) = 0;
  CHECK(kept_by(ctx, p, capacity) == Kept{true, false, true, true, true, true});
  CHECK(kept_by(ctx, p, by_expert) == Kept{true, false, true, false, true, true});
}

TEST_CASE("About the share asked for of the sequences is never dropped, while training") {
  const Index sequences = 2000, length = 3, tokens = sequences * length;
  Problem p = draw_problem(1, tokens, 4, 2, false, false, false);
  for (Index i = 0; i < 2 * tokens; ++i) p.assignments.expert(i) = moe::ExpertId(i % 2);  // all on the first device
  std::vector<Index> offsets;
  for (Index s = 0; s <= sequences; ++s) offsets.push_back(s * length);
  p.batch.sequence_offsets = indices<Space>(offsets);
  Context ctx;
  const Kept exempt = exempt_in(ctx, p, 0.1);
  Index count = 0;
  for (Index s = 0; s < sequences; ++s) {
    count += exempt[s * length * 2];
    for (Index i = 0; i < 2 * length; ++i) CHECK(exempt[s * length * 2 + i] == exempt[s * length * 2]);  // whole
  }
  CHECK(std::abs(double(count) - 200) < 5 * std::sqrt(180.0));
  CHECK(exempt_in(ctx, p, 0) == Kept(2 * tokens, false));
  CHECK(exempt_in(ctx, p, 1) == Kept(2 * tokens, true));
  ctx.step = 1;
  CHECK(exempt_in(ctx, p, 0.1) != exempt);
  ctx.step = 0;
  ctx.training = false;
  CHECK(exempt_in(ctx, p, 0.1) == Kept(2 * tokens, false));
  ctx.training = true;

  // A microbatch of the later half draws as the whole batch does.
  Problem half = p;
  half.assignments.tokens = tokens / 2;
  half.assignments.bound = tokens;
  half.assignments.expert = Kokkos::subview(p.assignments.expert, Kokkos::make_pair(tokens, 2 * tokens));
  half.assignments.weight = Kokkos::subview(p.assignments.weight, Kokkos::make_pair(tokens, 2 * tokens));
  half.batch.x = moe::Matrix<float, Space>("x", tokens / 2, 1);
  offsets.resize(sequences / 2 + 1);
  half.batch.sequence_offsets = indices<Space>(offsets);
  ctx.first_token = tokens / 2;
  CHECK(exempt_in(ctx, half, 0.1) == Kept(exempt.begin() + tokens, exempt.end()));
  ctx.first_token = 0;

  // Where the exempt alone exceed the budget they all stay and all others go.
  Drop capacity = published::deepseek_v2(2);
  capacity.factor = 0.05;  // 300 places of 12000, for some 1200 exempt assignments
  CHECK(count * length * 2 > 300);
  CHECK(kept_by(ctx, p, capacity) == exempt);
  capacity.factor = 0.4;
  const Kept kept = kept_by(ctx, p, capacity);
  CHECK(std::count(kept.begin(), kept.end(), true) == 2400);
  for (Index i = 0; i < 2 * tokens; ++i) CHECK((kept[i] || !exempt[i]));
}

// ----------------------------------------------------------------------------------------------------- edges

TEST_CASE("Batches without tokens, and batches of padding alone, have empty plans") {
  for (Priority priority : priorities) {
    Context ctx;
    const Drop capacity{.priority = priority, .devices = 2, .exempt_fraction = 0.5};
    moe::DispatchPlan<Space> plan;
    CHECK(kept_by(ctx, draw_problem(1, 0, 4, 2, false, true, true), capacity, &plan).empty());
    CHECK(plan.expert_offsets(4) == 0);
    Problem p = draw_problem(2, 9, 4, 2, true, true, false);
    Kokkos::deep_copy(p.assignments.expert, moe::no_expert);
    p.batch.mask = moe::Vector<std::uint8_t, Space>("mask", 9);
    CHECK(kept_by(ctx, p, capacity, &plan) == Kept(p.assignments.bound, false));
    CHECK(plan.expert_offsets(4) == 0);
  }
}

#if defined(KOKKOS_ENABLE_OPENMP)
TEST_CASE("Every priority keeps the same for 1, 2 and 3 threads") {
  const Problem p = draw_problem(7, 2000, 8, 3, true, true, true);
  for (Priority priority : priorities) {
    Drop capacity{.factor = 0.7, .scope = moe::Scope::sequence(), .priority = priority, .devices = 4};
    capacity.exempt_fraction = 0.2;
    std::vector<Kept> kept;
    for (int threads : {1, 2, 3}) {
      moe::Context<Kokkos::OpenMP> ctx;
      ctx.space = Kokkos::OpenMP(threads);
      kept.push_back(kept_by(ctx, p, capacity));
    }
    CHECK(kept[1] == kept[0]);
    CHECK(kept[2] == kept[0]);
  }
}
#endif

}  // namespace capacity_test
