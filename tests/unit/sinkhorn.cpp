// Sinkhorn's plan against plain scaling.
#include <moe/routing/sinkhorn.hpp>

#include "moe_test/choices.hpp"

namespace sinkhorn_test {

using namespace moe_test;

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

TEMPLATE_LIST_TEST_CASE("A plan of no token is a plan like others", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  for (bool training : {true, false})
    CHECK(choose<T, Space>(moe::Sinkhorn<2>{}, {}, 3, {.training = training}, 2).empty());
}

TEST_CASE("Plans with settings that cannot work are refused") {
  const moe::RouterShape shape{4, 1};
  CHECK_THROWS_AS(moe::Sinkhorn<5>{}.check(shape), moe::ConfigError);
  moe::Sinkhorn<> policy;
  policy.max_iterations = 0;
  CHECK_THROWS_AS(policy.check(shape), moe::ConfigError);
}

int allocations = 0;

TEST_CASE("The second plan of a shape allocates nothing") {
  using Space = Kokkos::DefaultHostExecutionSpace;
  const auto batch = batch_of<float, Space>(40, {});
  const auto keys = random<moe::Matrix<float, Space>>(1, 40, 3);
  moe::Assignments<float, Space> assignments;
  assignments.token_offsets = moe::Vector<Index, Space>("offsets", 41);
  assignments.expert = moe::Vector<ExpertId, Space>("expert", 40);
  moe::Context<Space> ctx;
  moe::Sinkhorn<>{}.select(ctx, keys, batch, assignments);
  allocations = 0;
  Kokkos::Tools::Experimental::set_allocate_data_callback(
      [](Kokkos_Profiling_SpaceHandle, const char*, const void*, uint64_t) { ++allocations; });
  moe::Sinkhorn<>{}.select(ctx, keys, batch, assignments);
  Kokkos::Tools::Experimental::set_allocate_data_callback(nullptr);
  CHECK(allocations == 0);
}

#if defined(KOKKOS_ENABLE_OPENMP)
TEST_CASE("Plans are the same for 1, 2 and 3 threads") {
  using Space = Kokkos::OpenMP;
  const Rows rows = normal_keys(210, 8, 6);
  for (const auto scope : {moe::Scope::batch(), moe::Scope::groups_of(70)}) {
    moe::Sinkhorn<2> plan;
    plan.scope = scope;
    const auto one = choose<float, Space>(plan, rows, 8, {}, 2, Space(1));
    for (int threads : {2, 3}) CHECK(choose<float, Space>(plan, rows, 8, {}, 2, Space(threads)) == one);
  }
}
#endif

}  // namespace sinkhorn_test
