// Balanced assignment against its golden and an exact solver; Sinkhorn's plan against plain scaling.
#include <moe/routing/balanced_assignment.hpp>
#include <moe/routing/router.hpp>
#include <moe/routing/sinkhorn.hpp>

#include "moe_test/cases.hpp"
#include "moe_test/golden.hpp"
#include "reference/assignment.hpp"

namespace balanced_assignment_test {

using namespace moe_test;
using moe::ExpertId;
using Rows = std::vector<std::vector<double>>;
using Choices = std::vector<ExpertId>;
constexpr double infinity = std::numeric_limits<double>::infinity();

/// A selection's input beside the keys.
struct Setting {
  bool training = true;
  std::vector<std::uint8_t> mask = {};
  std::vector<Index> sequences = {};
};

template <class View, class T>
View device(const std::vector<T>& values) {
  View view("values", values.size());
  const auto copy = Kokkos::create_mirror_view(view);
  std::copy(values.begin(), values.end(), copy.data());
  Kokkos::deep_copy(view, copy);
  return view;
}

template <class T, class Space>
moe::Matrix<T, Space> matrix(const Rows& rows, int columns) {
  moe::Matrix<T, Space> view("rows", rows.size(), columns);
  const auto copy = Kokkos::create_mirror_view(view);
  for (std::size_t t = 0; t < rows.size(); ++t)
    for (int e = 0; e < columns; ++e) copy(t, e) = T(rows[t][e]);
  Kokkos::deep_copy(view, copy);
  return view;
}

template <class T, class Space>
moe::Batch<T, Space> batch_of(std::size_t tokens, const Setting& setting) {
  moe::Batch<T, Space> batch;
  batch.x = moe::Matrix<T, Space>("x", tokens, 1);
  if (!setting.mask.empty()) batch.mask = device<moe::Vector<std::uint8_t, Space>>(setting.mask);
  if (!setting.sequences.empty()) batch.sequence_offsets = indices<Space>(setting.sequences);
  return batch;
}

/// What `policy` chooses: k entries a token.
template <class T, class Space, class Policy>
Choices choose(const Policy& policy, const Rows& rows, int experts, const Setting& setting = {}, int k = 1,
               const Space& space = {}) {
  policy.check({experts, 1});
  moe::Context<Space> ctx;
  ctx.space = space;
  ctx.training = setting.training;
  const auto batch = batch_of<T, Space>(rows.size(), setting);
  moe::Assignments<T, Space> assignments;
  assignments.tokens = batch.tokens();
  assignments.bound = policy.bound(batch, experts);
  REQUIRE(assignments.bound == Index(rows.size()) * k);
  assignments.token_offsets = filled<moe::Vector<Index, Space>>(-5, rows.size() + 1);
  assignments.expert = filled<moe::Vector<ExpertId, Space>>(-5, assignments.bound);
  policy.select(ctx, matrix<T, Space>(rows, experts), batch, assignments);
  ctx.space.fence();
  const auto offsets = host(assignments.token_offsets);
  for (std::size_t t = 0; t <= rows.size(); ++t) REQUIRE(offsets(t) == Index(t) * k);
  const auto chosen = host(assignments.expert);
  return {chosen.data(), chosen.data() + chosen.size()};
}

/// Normal keys, rounded to float so that both precisions see the same problem.
Rows normal_keys(int tokens, int experts, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  Rows rows(tokens, std::vector<double>(experts));
  for (auto& row : rows)
    for (double& key : row) key = float(normal(engine));
  return rows;
}

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
  for (bool training : {true, false}) {
    CHECK(choose<T, Space>(moe::BalancedAssignment{}, {}, 3, {.training = training}).empty());
    CHECK(choose<T, Space>(moe::Sinkhorn<2>{}, {}, 3, {.training = training}, 2).empty());
  }
}

TEST_CASE("Settings of balanced selections that cannot work are refused") {
  const moe::RouterShape shape{4, 1};
  CHECK_THROWS_AS(with(0).check(shape), moe::ConfigError);
  CHECK_THROWS_AS(with(std::nan("")).check(shape), moe::ConfigError);
  CHECK_THROWS_AS(moe::Sinkhorn<5>{}.check(shape), moe::ConfigError);
  moe::Sinkhorn<> policy;
  policy.max_iterations = 0;
  CHECK_THROWS_AS(policy.check(shape), moe::ConfigError);
}

int allocations = 0;

TEST_CASE("The second balanced selection of a shape allocates nothing") {
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
    moe::Sinkhorn<>{}.select(ctx, keys, batch, assignments);
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
TEST_CASE("Assignments and plans are the same for 1, 2 and 3 threads") {
  using Space = Kokkos::OpenMP;
  Rows rows = normal_keys(210, 8, 6);
  for (int t = 0; t < 60; ++t) rows[t + 60] = rows[t];  // tokens alike bid alike
  for (const auto scope : {moe::Scope::batch(), moe::Scope::groups_of(70)}) {
    for (int team_size : {0, 1, 2, 3}) {
      moe::BalancedAssignment policy{.scope = scope, .team_size = team_size};
      moe::Sinkhorn<2> plan;
      plan.scope = scope;
      const auto one = choose<float, Space>(policy, rows, 8, {}, 1, Space(1));
      const auto one_plan = choose<float, Space>(plan, rows, 8, {}, 2, Space(1));
      for (int threads : {2, 3}) {
        const Space space(threads);
        CHECK(choose<float, Space>(policy, rows, 8, {}, 1, space) == one);
        CHECK(choose<float, Space>(plan, rows, 8, {}, 2, space) == one_plan);
      }
    }
  }
}
#endif

/// Scaling as textbooks have it: rows to 1, columns to n / E, many times.
Rows naive_plan(const Rows& rows) {
  Rows plan = rows;
  const std::size_t experts = rows[0].size();
  for (auto& row : plan)
    for (double& entry : row) entry = std::exp(entry);
  for (int i = 0; i < 5000; ++i) {
    for (auto& row : plan) {
      double sum = 0;
      for (double entry : row) sum += entry;
      for (double& entry : row) entry /= sum;
    }
    for (std::size_t e = 0; e < experts; ++e) {
      double sum = 0;
      for (const auto& row : plan) sum += row[e];
      for (auto& row : plan) row[e] *= double(rows.size()) / double(experts) / sum;
    }
  }
  return plan;
}

template <class T, class Space>
Rows plan_of(const moe::Sinkhorn<>& policy, const Rows& rows, int experts, const Setting& setting = {}) {
  moe::Context<Space> ctx;
  const auto keys = matrix<T, Space>(rows, experts);
  policy.log_plan(ctx, keys, batch_of<T, Space>(rows.size(), setting));
  ctx.space.fence();
  const auto result = host(keys);
  Rows plan(rows.size(), std::vector<double>(experts));
  for (std::size_t t = 0; t < rows.size(); ++t)
    for (int e = 0; e < experts; ++e) plan[t][e] = std::exp(double(result(t, e)));
  return plan;
}

TEMPLATE_LIST_TEST_CASE("Sinkhorn's plan has its marginals and is that of plain scaling", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  moe::Sinkhorn<> policy;
  for (const auto& [tokens, experts] : {std::pair{1, 3}, {5, 1}, {40, 6}, {33, 8}}) {
    const Rows rows = normal_keys(tokens, experts, 7);
    const Rows plan = plan_of<T, Space>(policy, rows, experts);
    for (const auto& row : plan) {
      double sum = 0;
      for (double entry : row) sum += entry;
      CHECK(sum == Approx(1).epsilon(2e-3));
    }
    for (int e = 0; e < experts; ++e) {
      double sum = 0;
      for (const auto& row : plan) sum += row[e];
      CHECK(sum == Approx(double(tokens) / experts).epsilon(1e-5));
    }
    auto exact = policy;
    exact.tolerance = std::is_same_v<T, double> ? 1e-12 : 0;
    exact.max_iterations = 1000;
    const Rows fine = plan_of<T, Space>(exact, rows, experts), expected = naive_plan(rows);
    double worst = 0;
    for (int t = 0; t < tokens; ++t)
      for (int e = 0; e < experts; ++e) worst = std::max(worst, std::abs(fine[t][e] - expected[t][e]));
    CHECK(worst < (std::is_same_v<T, double> ? 1e-10 : 1e-5));
  }
}

TEMPLATE_LIST_TEST_CASE("Sinkhorn chooses by the plan while training, by the keys otherwise", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  const int tokens = 48, experts = 6;
  Rows rows = normal_keys(tokens, experts, 8);
  for (auto& row : rows) row[2] += 3;  // all prefer expert 2
  auto largest = [](const std::vector<double>& row) {
    const auto first = std::max_element(row.begin(), row.end());
    std::vector<double> others = row;
    others[first - row.begin()] = -infinity;
    return std::pair{ExpertId(first - row.begin()),
                     ExpertId(std::max_element(others.begin(), others.end()) - others.begin())};
  };
  moe::Sinkhorn<2> policy;
  policy.tolerance = 1e-5;
  const Rows plan = naive_plan(rows);
  for (bool training : {true, false}) {
    const auto chosen = choose<T, Space>(policy, rows, experts, {.training = training}, 2);
    int in_favour = 0;
    for (int t = 0; t < tokens; ++t) {
      const auto [first, second] = largest(training ? plan[t] : rows[t]);
      CHECK(chosen[2 * t] == first);
      CHECK(chosen[2 * t + 1] == second);
      in_favour += chosen[2 * t] == 2;
    }
    CHECK((training ? in_favour < 16 : in_favour > 40));
  }
}

TEMPLATE_LIST_TEST_CASE("Sinkhorn leaves padding, forbidden experts and other groups out", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  Rows rows = normal_keys(30, 4, 9);
  Setting setting{.mask = std::vector<std::uint8_t>(30, 1), .sequences = {0, 12, 12, 30}};
  setting.mask[3] = setting.mask[29] = 0;
  moe::Sinkhorn<> policy;
  policy.scope = moe::Scope::sequence();
  const Rows plan = plan_of<T, Space>(policy, rows, 4, setting);
  for (int e = 0; e < 4; ++e) {
    double first = 0, second = 0;
    for (int t = 0; t < 30; ++t) (t < 12 ? first : second) += plan[t][e];
    CHECK(first == Approx(11 / 4.0).epsilon(1e-5));
    CHECK(second == Approx(17 / 4.0).epsilon(1e-5));
  }
  CHECK(plan[3] == std::vector<double>(4, 0));

  rows[5] = std::vector<double>(4, -infinity);
  rows[6] = {-infinity, 1, -infinity, -infinity};
  rows[7][0] = std::numeric_limits<double>::quiet_NaN();
  rows[8][0] = infinity;
  for (auto& row : rows) row[2] = -infinity;
  moe::Sinkhorn<3> three;
  three.scope = policy.scope;
  const auto chosen = choose<T, Space>(three, rows, 4, setting, 3);
  CHECK(std::count(chosen.begin(), chosen.end(), 2) == 0);
  for (int t : {3, 5, 29}) CHECK(Choices(chosen.begin() + 3 * t, chosen.begin() + 3 * t + 3) == Choices(3, -1));
  CHECK(Choices(chosen.begin() + 18, chosen.begin() + 21) == Choices{1, -1, -1});
  CHECK(std::count(chosen.begin() + 21, chosen.begin() + 24, 0) == 0);
  CHECK(chosen[24] == 0);
}

}  // namespace balanced_assignment_test
