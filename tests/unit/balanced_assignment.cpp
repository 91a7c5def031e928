// Balanced assignment against its golden and an exact solver.
#include <moe/routing/balanced_assignment.hpp>
#include <moe/routing/router.hpp>

#include "moe_test/choices.hpp"
#include "moe_test/golden.hpp"
#include "reference/assignment.hpp"

namespace balanced_assignment_test {

using namespace moe_test;

template <class Ids>
double total(const Rows& rows, const Ids& chosen) {
  double sum = 0;
  for (std::size_t t = 0; t < rows.size(); ++t) sum += chosen[t] < 0 ? 0 : rows[t][chosen[t]];
  return sum;
}

double spread(const Rows& rows) {
  double low = infinity, high = -infinity;
  for (const auto& row : rows) {
    for (double key : row) {
      if (std::isfinite(key)) low = std::min(low, key), high = std::max(high, key);
    }
  }
  return high < low ? 0 : high - low;
}

/// How far below the best total the documentation lets a choice be.
double slack(const Rows& rows, int experts, double epsilon) {
  const int seats = (int(rows.size()) + experts - 1) / experts;
  return epsilon * spread(rows) * experts * seats + 1e-9;
}

void check_balance(const Choices& chosen, int experts) {
  std::vector<Index> load(experts);
  for (ExpertId e : chosen) ++load.at(e);
  const Index n = Index(chosen.size());
  for (Index count : load) CHECK((count == n / experts || count == (n + experts - 1) / experts));
}

moe::BalancedAssignment with(double epsilon) {
  moe::BalancedAssignment policy;
  policy.epsilon = epsilon;
  return policy;
}

TEMPLATE_LIST_TEST_CASE("BASE's golden: the optimum while training, the largest score otherwise", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  using Host = Kokkos::DefaultHostExecutionSpace;
  const GoldenFile golden("base_layer");
  const auto scores = golden.matrix<Host>("scores");
  Rows rows(scores.extent(0), std::vector<double>(scores.extent(1)));
  for (std::size_t t = 0; t < rows.size(); ++t)
    for (std::size_t e = 0; e < rows[t].size(); ++e) rows[t][e] = scores(t, e);
  moe::Vector<std::int32_t, Host> best("best", rows.size()), greedy("greedy", rows.size());
  moe::Vector<float, Host> sum("sum", 1);
  golden.file.read("assignment", best);
  golden.file.read("greedy", greedy);
  golden.file.read("total", sum);

  const auto rough = choose<T, Space>(with(0.05), rows, 4);
  check_balance(rough, 4);
  CHECK(total(rows, rough) >= double(sum(0)) - slack(rows, 4, 0.05) - 1e-5);
  CHECK(choose<T, Space>(with(1e-6), rows, 4) == Choices(best.data(), best.data() + best.size()));
  CHECK(choose<T, Space>(with(1e-3), rows, 4, {.training = false}) ==
        Choices(greedy.data(), greedy.data() + greedy.size()));
}

TEST_CASE("BASE's golden through a router: weights are the sigmoids of the assigned scores") {
  using Space = Kokkos::DefaultHostExecutionSpace;
  using Router = moe::Router<moe::Sigmoid, moe::ChooseByLogits, moe::BalancedAssignment>;
  const GoldenFile golden("base_layer");
  const Router router{with(1e-6)};
  const moe::RouterShape shape{4, 6};
  auto parameters = router.parameters<float, Space>(shape);
  parameters.weight = golden.matrix<Space>("centroids");
  const auto buffers = router.buffers<float, Space>(shape);
  moe::Batch<float, Space> batch;
  batch.x = golden.matrix<Space>("x");
  moe::Context<Space> ctx;
  moe::Routing<float, Space> routing;
  router.forward(ctx, batch, parameters, buffers, 4, routing);
  const auto alpha = golden.matrix<Space>("alpha");
  for (Index t = 0; t < 12; ++t) CHECK(routing.assignments.weight(t) == Approx(alpha(t, 0)).margin(1e-6));
}

TEMPLATE_LIST_TEST_CASE("The total is as near to the exact solver's as promised, and loads are equal", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  for (const auto& [tokens, experts] : {std::pair{1, 1},
                                        {5, 1},
                                        {1, 5},
                                        {3, 8},
                                        {7, 3},
                                        {8, 4},
                                        {9, 4},
                                        {40, 7},
                                        {64, 8},
                                        {33, 32},
                                        {31, 32},
                                        {90, 5}}) {
    for (unsigned seed : {1u, 2u}) {
      INFO(tokens << " tokens, " << experts << " experts, seed " << seed);
      const Rows rows = normal_keys(tokens, experts, seed);
      const double best = total(rows, reference::best_assignment(rows, experts));
      for (double epsilon : {1.0, 1e-2, 1e-3, 1e-6}) {
        const auto chosen = choose<T, Space>(with(epsilon), rows, experts);
        check_balance(chosen, experts);
        CHECK(total(rows, chosen) >= best - slack(rows, experts, epsilon));
        CHECK(total(rows, chosen) <= best + 1e-9);
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("Equal keys and equal tokens are assigned in balance too", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  const Rows flat(50, std::vector<double>(8, 0.25)), alike(50, normal_keys(1, 8, 3)[0]);
  Rows few = normal_keys(45, 6, 4);  // keys of -1, 0 and 1
  for (auto& row : few)
    for (double& key : row) key = std::round(std::clamp(key, -1.0, 1.0));
  for (const Rows& rows : {flat, alike, few}) {
    const int experts = int(rows[0].size());
    const auto chosen = choose<T, Space>(with(1e-4), rows, experts);
    check_balance(chosen, experts);
    CHECK(total(rows, chosen) >= total(rows, reference::best_assignment(rows, experts)) - slack(rows, experts, 1e-4));
  }
}

TEMPLATE_LIST_TEST_CASE("Keys of -infinity are never taken, and as few tokens as possible go without", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  for (unsigned seed = 0; seed < 6; ++seed) {
    Rows rows = normal_keys(30 + int(seed), 7, seed);
    std::mt19937 engine(seed);
    for (auto& row : rows)
      for (double& key : row) key = engine() % 7 < seed ? -infinity : key;  // 5/7 of them, in the end
    for (auto& row : rows) row[3] = -infinity;
    for (double& key : rows[4]) key = -infinity;
    const auto best = reference::best_assignment(rows, 7);
    const auto chosen = choose<T, Space>(with(1e-3), rows, 7);
    CHECK(std::count(chosen.begin(), chosen.end(), -1) == std::count(best.begin(), best.end(), -1));
    CHECK(chosen[4] == -1);
    bool allowed = true;
    for (std::size_t t = 0; t < rows.size(); ++t)
      allowed = allowed && (chosen[t] < 0 || rows[t][chosen[t]] > -infinity);
    CHECK(allowed);
    CHECK(total(rows, chosen) >= total(rows, best) - slack(rows, 7, 1e-3));
  }
  const Rows nothing(5, std::vector<double>(3, -infinity));
  CHECK(choose<T, Space>(moe::BalancedAssignment{}, nothing, 3) == Choices(5, -1));
}

TEMPLATE_LIST_TEST_CASE("Keys that are NaN or huge do not keep the auction from ending", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  const double huge = double(std::numeric_limits<T>::max()), tiny = double(std::numeric_limits<T>::denorm_min());
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Rows rows{{nan, 1, 2},        {infinity, 0, 0}, {huge, -huge, 0},
                  {-huge, huge, nan}, {nan, nan, nan},  {tiny, 0, tiny}};
  const auto chosen = choose<T, Space>(moe::BalancedAssignment{}, rows, 3);
  CHECK(chosen[0] > 0);
  CHECK(chosen[1] == 0);
  CHECK(chosen[4] == -1);
  const Rows tinies{{0, tiny}, {tiny, 0}, {0, tiny}, {0, 0}};
  check_balance(choose<T, Space>(moe::BalancedAssignment{}, tinies, 2), 2);
}

/// The assignment of each span of tokens for itself, without padding.
Choices piecewise(const moe::BalancedAssignment& policy, const Rows& rows, const std::vector<std::uint8_t>& mask,
                  const std::vector<Index>& offsets) {
  Choices result(rows.size(), -1);
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
    Rows own;
    std::vector<Index> tokens;
    for (Index t = offsets[s]; t < offsets[s + 1]; ++t) {
      if (mask[t] == 0) continue;
      own.push_back(rows[t]);
      tokens.push_back(t);
    }
    auto whole = policy;
    whole.scope = moe::Scope::batch();
    const auto chosen = choose<double, Kokkos::DefaultHostExecutionSpace>(whole, own, int(rows[0].size()));
    for (std::size_t i = 0; i < tokens.size(); ++i) result[tokens[i]] = chosen[i];
  }
  return result;
}

TEMPLATE_LIST_TEST_CASE("Groups are assigned for themselves, and padding gets nothing", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  const Rows rows = normal_keys(60, 4, 5);
  std::vector<std::uint8_t> mask(60, 1);
  for (int t : {0, 7, 8, 9, 33, 59}) mask[t] = 0;
  for (int t = 20; t < 26; ++t) mask[t] = 0;  // a whole sequence
  const std::vector<Index> sequences{0, 0, 13, 20, 26, 26, 60};
  auto policy = with(1e-6);
  CHECK(choose<T, Space>(policy, rows, 4, {.mask = mask}) == piecewise(policy, rows, mask, {0, 60}));
  policy.scope = moe::Scope::sequence();
  CHECK(choose<T, Space>(policy, rows, 4, {.mask = mask, .sequences = sequences}) ==
        piecewise(policy, rows, mask, sequences));
  policy.scope = moe::Scope::groups_of(20);
  CHECK(choose<T, Space>(policy, rows, 4, {.mask = mask}) == piecewise(policy, rows, mask, {0, 20, 40, 60}));
  const std::vector<std::uint8_t> padding(60, 0);
  CHECK(choose<T, Space>(policy, rows, 4, {.mask = padding}) == Choices(60, -1));
  const auto eager = choose<T, Space>(policy, rows, 4, {.training = false, .mask = mask});
  for (int t = 0; t < 60; ++t) CHECK((eager[t] == -1) == (mask[t] == 0));
}

TEMPLATE_LIST_TEST_CASE("No token is a batch like others", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  for (bool training : {true, false})
    CHECK(choose<T, Space>(moe::BalancedAssignment{}, {}, 3, {.training = training}).empty());
}

TEST_CASE("Settings that cannot work are refused") {
  const moe::RouterShape shape{4, 1};
  CHECK_THROWS_AS(with(0).check(shape), moe::ConfigError);
  CHECK_THROWS_AS(with(std::nan("")).check(shape), moe::ConfigError);
}

int allocations = 0;

TEST_CASE("The second assignment of a shape allocates nothing") {
  using Space = Kokkos::DefaultHostExecutionSpace;
  const int tokens = 40, experts = 3;
  const auto batch = batch_of<float, Space>(tokens, {});
  const auto keys = random<moe::Matrix<float, Space>>(1, tokens, experts);
  moe::Assignments<float, Space> assignments;
  assignments.token_offsets = moe::Vector<Index, Space>("offsets", tokens + 1);
  assignments.expert = moe::Vector<ExpertId, Space>("expert", tokens);
  moe::Context<Space> ctx;
  const auto step = [&] {
    moe::BalancedAssignment{.scope = moe::Scope::groups_of(20)}.select(ctx, keys, batch, assignments);
  };
  step();
  allocations = 0;
  Kokkos::Tools::Experimental::set_allocate_data_callback(
      [](Kokkos_Profiling_SpaceHandle, const char*, const void*, uint64_t) { ++allocations; });
  step();
  Kokkos::Tools::Experimental::set_allocate_data_callback(nullptr);
  CHECK(allocations == 0);
}

#if defined(KOKKOS_ENABLE_OPENMP)
TEST_CASE("Assignments are the same for 1, 2 and 3 threads") {
  using Space = Kokkos::OpenMP;
  Rows rows = normal_keys(210, 8, 6);
  for (int t = 0; t < 60; ++t) rows[t + 60] = rows[t];  // tokens alike bid alike
  for (const auto scope : {moe::Scope::batch(), moe::Scope::groups_of(70)}) {
    for (int team_size : {0, 1, 2, 3}) {
      moe::BalancedAssignment policy{.scope = scope, .team_size = team_size};
      const auto one = choose<float, Space>(policy, rows, 8, {}, 1, Space(1));
      for (int threads : {2, 3}) {
        const Space space(threads);
        CHECK(choose<float, Space>(policy, rows, 8, {}, 1, space) == one);
      }
    }
  }
}
#endif

}  // namespace balanced_assignment_test
