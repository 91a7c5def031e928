// What a team of 32 lanes makes, beside what one thread makes of the same row.
#include <moe/moe.hpp>

#include "moe_test/cases.hpp"

namespace teams_test {

using namespace moe_test;
using moe::ExpertId;
using moe::Row;
using moe::Team;
constexpr double infinity = std::numeric_limits<double>::infinity();

/// Runs f(team) by 32 lanes.
template <class F>
void by_lanes(const F& f) {
  auto lane = [&] { f(moe::detail::team_of(0)); };
  moe::detail::simulate_lanes([](void* call) { (*static_cast<decltype(lane)*>(call))(); }, &lane);
}

/// Keys with many equal ones, infinities, NaN and zeros of both signs.
template <class Real>
std::vector<Real> awkward(Index size, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<Real> row(static_cast<std::size_t>(size));
  for (Real& value : row) {
    const Real special[] = {Real(-infinity), Real(infinity), Real(std::nan("")), Real(0), Real(-0.0)};
    const unsigned draw = unsigned(engine());
    value = draw % 16 < 5 ? special[draw % 16] : Real(int(draw >> 8) % 40) / Real(8) - Real(2);
  }
  return row;
}

template <class Real>
std::vector<Real> smooth(Index size, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  std::vector<Real> row(static_cast<std::size_t>(size));
  for (Real& value : row) value = Real(normal(engine));
  return row;
}

template <class T>
Row<T> view(std::vector<T>& row) {
  return {row.data(), Index(row.size())};
}
template <class T>
Row<const T> view(const std::vector<T>& row) {
  return {row.data(), Index(row.size())};
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

const std::vector<Index> sizes{1, 2, 31, 32, 33, 60, 64, 128, 200, 256, 384, 512, 1024};

TEST_CASE("Lanes reach every number once, and reduce to the same bits in each") {
  for (const Index size : sizes) {
    CAPTURE(size);
    const auto row = smooth<float>(size, unsigned(size));
    std::vector<int> visits(std::size_t(size), 0);
    std::vector<float> sums(32), tops(32);
    std::vector<int> prefixes(32);
    int singles = 0;
    by_lanes([&](const Team& team) {
      team.each(size, [&](Index i) { ++visits[std::size_t(i)]; });
      sums[std::size_t(team.lane())] = team.sum<float>(size, [&](Index i) { return row[std::size_t(i)]; });
      tops[std::size_t(team.lane())] = team.max<float>(size, [&](Index i) { return row[std::size_t(i)]; });
      prefixes[std::size_t(team.lane())] = team.sum_up_to_lane(team.lane() + 1);
      team.single([&] { ++singles; });
    });
    CHECK(visits == std::vector<int>(std::size_t(size), 1));
    CHECK(singles == 1);
    double exact = 0;
    for (float value : row) exact += value;
    CHECK(sums[0] == Approx(exact).margin(1e-4));
    CHECK(tops[0] == *std::max_element(row.begin(), row.end()));
    for (int l = 0; l < 32; ++l) {
      CHECK(std::memcmp(&sums[0], &sums[std::size_t(l)], 4) == 0);
      CHECK(std::memcmp(&tops[0], &tops[std::size_t(l)], 4) == 0);
      CHECK(prefixes[std::size_t(l)] == (l + 1) * (l + 2) / 2);
    }
  }
}

TEST_CASE("Zeros of both signs and NaN leave all lanes with one maximum") {
  for (unsigned seed = 0; seed < 40; ++seed) {
    auto row = awkward<float>(100, seed);
    for (float& value : row) value = value > 0 ? 0 : value;  // so that a zero is the largest
    std::vector<float> tops(32);
    by_lanes([&](const Team& team) {
      tops[std::size_t(team.lane())] = moe::detail::row_max(team, view(std::as_const(row)));
    });
    CHECK(tops[0] == 0);
    for (const float top : tops) CHECK(std::signbit(top) == std::signbit(tops[0]));
  }
}

template <class Real>
void check_largest() {
  for (const Index size : sizes) {
    for (unsigned seed = 0; seed < 4; ++seed) {
      CAPTURE(size, seed);
      const auto row = awkward<Real>(size, seed + unsigned(size));
      for (const Index k : {1, 2, 8, 32}) {
        if (k > size) continue;
        std::vector<ExpertId> one(static_cast<std::size_t>(k)), lanes = one;
        auto key = row, shared = row;
        moe::detail::take_largest(Team{}, view(key), view(one));
        by_lanes([&](const Team& team) { moe::detail::take_largest(team, view(shared), view(lanes)); });
        CHECK(one == lanes);
      }
      Real first, second, first_of_lanes, second_of_lanes;
      moe::detail::row_largest_two(Team{}, view(row), first, second);
      by_lanes([&](const Team& team) {
        Real a, b;
        moe::detail::row_largest_two(team, view(row), a, b);
        if (team.lane() == int(seed)) first_of_lanes = a, second_of_lanes = b;
      });
      CHECK(first == first_of_lanes);
      CHECK(second == second_of_lanes);
    }
  }
}

TEST_CASE("Lanes choose what one thread chooses, of equal keys the lowest expert first") {
  check_largest<float>();
  check_largest<double>();
}

template <class Selection>
void check_selection(const Selection& selection, Index size, Index k, const std::vector<double>& row) {
  std::vector<ExpertId> one(static_cast<std::size_t>(k)), lanes = one;
  auto key = row, shared = row;
  selection.select(Team{}, view(key), view(one));
  by_lanes([&](const Team& team) { selection.select(team, view(shared), view(lanes)); });
  CAPTURE(size);
  CHECK(one == lanes);
}

TEST_CASE("Every selection for teams chooses the same by lanes") {
  for (const Index size : {8, 33, 64, 256}) {
    for (unsigned seed = 0; seed < 3; ++seed) {
      auto row = awkward<double>(size, seed);
      check_selection(moe::TopK<>{6}, size, 6, row);
      check_selection(moe::TopKPerGroup<2>{3}, size, 6, row);
      check_selection(moe::Threshold{.threshold = 0.3, .cap = 6, .floor = 2}, size, 6, row);
      check_selection(moe::AllExperts{}, size, size, row);
      check_selection(moe::WithShared<moe::TopK<4>, 2>{}, size, 6, row);
      for (double& value : row) value = 1 / double(size);
      check_selection(moe::TopP{.p = 0.05, .cap = 6}, size, 6, row);
    }
  }
}

template <class Key>
void check_groups(const Key& key, Index experts) {
  for (unsigned seed = 0; seed < 4; ++seed) {
    const auto row = awkward<float>(experts, seed);
    auto one = row, lanes = row;
    key.apply(Team{}, view(row), view(row), view(one));
    by_lanes([&](const Team& team) { key.apply(team, view(row), view(row), view(lanes)); });
    CHECK(same(one, lanes));
  }
}

TEST_CASE("A group limit closes the same groups by lanes") {
  for (const Index experts : {64, 160, 256, 1024}) {
    CAPTURE(experts);
    check_groups(moe::GroupLimit<8, 4, moe::BestTwo>{}, experts);
    check_groups(moe::GroupLimit<8, 3, moe::Max>{}, experts);
    check_groups(moe::GroupLimit<8, 3, moe::Max, moe::Zero>{}, experts);
    check_groups(moe::GroupLimit<32, 5, moe::BestTwo>{}, experts);
    if (experts % 64 == 0) check_groups(moe::GroupLimit<64, 9>{}, experts);
  }
}

/// Values may differ in their last bits, since lanes add in another order; two orders of lanes may not.
template <class F>
void check_close(const std::vector<double>& row, const F& apply) {
  auto one = row, lanes = row, backwards = row;
  apply(Team{}, one);
  by_lanes([&](const Team& team) { apply(team, lanes); });
  by_lanes([&](const Team& team) { apply(team, backwards); });
  CHECK(same(lanes, backwards));
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (lanes[i] != Approx(one[i]).epsilon(1e-12).margin(1e-12)) FAIL("at " << i);
  }
}

template <class Scoring>
void check_scoring(const Scoring& scoring) {
  for (const Index size : {5, 32, 100, 256}) {
    const auto row = smooth<double>(size, 3), gradient = smooth<double>(size, 4);
    auto scores = row;
    scoring.apply(Team{}, view(scores));
    check_close(row, [&](const Team& team, std::vector<double>& z) { scoring.apply(team, view(z)); });
    check_close(gradient, [&](const Team& team, std::vector<double>& g) {
      scoring.pullback(team, view(std::as_const(scores)), view(g));
    });
  }
}

TEST_CASE("Scorings by lanes are scorings") {
  check_scoring(moe::Softmax{});
  check_scoring(moe::Sigmoid{});
  check_scoring(moe::SqrtSoftplus{});
  check_scoring(moe::Identity{});
}

template <class Weighting>
void check_weighting(const Weighting& weighting) {
  for (const Index size : {1, 8, 32, 40}) {
    const auto row = smooth<double>(size, 5), gradient = smooth<double>(size, 6);
    std::vector<ExpertId> chosen(static_cast<std::size_t>(size));
    for (Index i = 0; i < size; ++i) chosen[std::size_t(i)] = i % 7 == 3 ? moe::no_expert : ExpertId(i);
    const auto ids = view(std::as_const(chosen));
    check_close(row, [&](const Team& team, std::vector<double>& w) {
      moe::detail::apply_weighting(weighting, team, view(w), ids, Row<const double>{});
    });
    check_close(gradient, [&](const Team& team, std::vector<double>& g) {
      moe::detail::pull_weighting(weighting, team, view(row), ids, Row<const double>{}, view(g), Row<double>{});
    });
  }
}

TEST_CASE("Weightings by lanes are weightings") {
  check_weighting(moe::NormalizeSum{});
  check_weighting(moe::NormalizeDetachedSum{});
  check_weighting(moe::NormalizeMax{});
  check_weighting(moe::NormalizeLp{3});
  check_weighting(moe::SoftmaxOfChosen{});
  check_weighting(moe::SigmoidOfChosen{});
  check_weighting(moe::ConstantWeight{2});
  check_weighting(moe::Scale{2.5});
}

/// A map that says nothing of teams, and is wrong with more than one thread.
struct Reverse {
  using policy = moe::kind::row_map;
  static constexpr moe::MapPlace place = moe::MapPlace::logits;
  template <class Real>
  KOKKOS_FUNCTION void apply(const Team&, Row<Real> row, const moe::RowRandom&) const {
    for (Index e = 0; e < row.size / 2; ++e) {
      const Real other = row[row.size - 1 - e];
      row[row.size - 1 - e] = row[e];
      row[e] = other;
    }
  }
  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real>, Row<Real> gradient, const moe::RowRandom& r) const {
    apply(team, gradient, r);
  }
};

using Space = Kokkos::DefaultHostExecutionSpace;

template <class... Policies>
moe::Routing<float, Space> route(const moe::Matrix<float, Space>& logits) {
  moe::Context<Space> ctx;
  moe::Batch<float, Space> batch;
  batch.x = clone(logits);
  moe::Routing<float, Space> routing;
  const moe::Router<moe::GivenLogits, Policies...> router;
  router.forward(ctx, batch, moe::NoParameters{}, {}, Index(logits.extent(1)), routing);
  return routing;
}

TEST_CASE("A router of one policy that takes no team gives it one thread") {
  const auto logits = random<moe::Matrix<float, Space>>(3, 40, 64);
  moe::Matrix<float, Space> reversed("reversed", 40, 64);
  for (Index t = 0; t < 40; ++t) {
    for (Index e = 0; e < 64; ++e) reversed(t, e) = logits(t, 63 - e);
  }
  const auto mixed = route<Reverse, moe::Sigmoid, moe::TopK<6>, moe::NormalizeSum>(logits);
  const auto whole = route<moe::Sigmoid, moe::TopK<6>, moe::NormalizeSum>(reversed);
  CHECK(same_bits(mixed.assignments.expert, whole.assignments.expert));
  for (Index a = 0; a < 240; ++a) CHECK(mixed.assignments.weight(a) == Approx(whole.assignments.weight(a)));
}

TEST_CASE("Keys that do not fit a team's memory lie elsewhere") {
  const auto logits = random<moe::Matrix<float, Space>>(4, 9, 3000);
  const auto routing = route<moe::Softmax, moe::TopK<12>>(logits);
  for (Index t = 0; t < 9; ++t) {
    std::vector<float> row(&logits(t, 0), &logits(t, 0) + 3000);
    std::vector<ExpertId> chosen(12);
    moe::detail::take_largest(Team{}, view(row), view(chosen));
    for (Index i = 0; i < 12; ++i) CHECK(routing.assignments.expert(t * 12 + i) == chosen[std::size_t(i)]);
  }
}

/// Three choices of 50 tokens among five experts, some of them not made.
moe::Assignments<float, Space> some_assignments() {
  moe::Assignments<float, Space> assignments;
  assignments.tokens = 50;
  assignments.uniform_k = 3;
  assignments.bound = 150;
  assignments.expert = moe::Vector<ExpertId, Space>("expert", 150);
  assignments.weight = random<moe::Vector<float, Space>>(6, 150);
  for (Index a = 0; a < 150; ++a) assignments.expert(a) = a % 11 == 0 ? moe::no_expert : ExpertId(a * 7 % 5);
  return assignments;
}

TEST_CASE("Rows move and add up by lanes, in blocks and beside them") {
  for (const Index hidden : {1, 7, 64, 100, 1500, 2080}) {
    CAPTURE(hidden);
    const auto x = random<moe::Matrix<float, Space>>(5, 50, hidden);
    const auto assignments = some_assignments();
    moe::Context<Space> ctx;
    moe::Batch<float, Space> batch;
    batch.x = x;
    moe::DispatchPlan<Space> plan;
    moe::dispatch(ctx, assignments, batch, 5, moe::CapacityPolicy<moe::Dropless>{}, plan);
    const moe::Matrix<float, Space> rows("rows", plan.rows, hidden), y("y", 50, hidden);
    moe::gather(ctx, moe::Matrix<const float, Space>(x), plan, rows);
    moe::combine(ctx, moe::Matrix<const float, Space>(rows), moe::Vector<const float, Space>(assignments.weight), plan,
                 y);
    double worst = 0;
    for (Index t = 0; t < 50; ++t) {
      for (Index h = 0; h < hidden; ++h) {
        double sum = 0;
        for (Index a = 3 * t; a < 3 * t + 3; ++a) {
          if (assignments.expert(a) >= 0) sum += double(assignments.weight(a)) * double(x(t, h));
        }
        worst = std::max(worst, std::abs(sum - double(y(t, h))));
      }
    }
    CHECK(worst < 1e-5);
    for (Index r = 0; r < plan.expert_offsets(5); ++r) CHECK(rows(r, hidden - 1) == x(plan.row_token(r), hidden - 1));
  }
}

TEST_CASE("Slots of heads take from rows and give to them by lanes") {
  using Matrix = moe::Matrix<float, Space>;
  using Vector = moe::Vector<float, Space>;
  const auto assignments = some_assignments();
  moe::Context<Space> ctx;
  for (const Index width : {1, 7, 64, 100}) {
    for (const Index share : {1, 3}) {
      for (const bool weighted : {false, true}) {
        CAPTURE(width, share, weighted);
        moe::Batch<float, Space> batch;
        batch.x = Matrix("x", 50, 1);
        moe::DispatchPlan<Space> plan;
        moe::dispatch(ctx, assignments, batch, 5, moe::CapacityPolicy<moe::Dropless>{}, plan);
        const Vector weight = weighted ? assignments.weight : Vector{};
        const auto w = [&](Index a) { return weighted ? double(weight(a)) : 1.0; };
        const auto in = random<Matrix>(5, plan.rows, width), heads = random<Matrix>(6, 150 / share, width);
        const Matrix sums("sums", 150 / share, width), spread("spread", plan.rows, width),
            dheads("dheads", 150 / share, width), pulled("pulled", plan.rows, width);
        const Vector dots("dots", 150), dweight("dweight", 150);
        moe::detail::sum_slots(ctx, in, weight, plan, share, sums.data());
        const float* from = heads.data();
        moe::detail::spread_slots(ctx, from, weight, plan, share, spread, weighted ? in : Matrix{}, dots);
        if (weighted) moe::detail::pull_slots(ctx, from, in, weight, plan, share, dheads.data(), pulled, dweight);
        double worst = 0;
        const auto differ = [&](double expected, double result) {
          const double error = std::abs(expected - result);
          worst = error <= worst ? worst : error;
        };
        for (Index j = 0; j < 150 / share; ++j) {
          for (Index i = 0; i < width; ++i) {
            double sum = 0;
            for (Index a = j * share; a < (j + 1) * share; ++a) {
              const Index r = plan.assignment_row(a);
              if (r < 0) continue;
              sum += w(a) * double(in(r, i));
              differ(w(a) * double(heads(j, i)), double(spread(r, i)));
              if (weighted) differ(w(a) * double(heads(j, i)), double(pulled(r, i)));
            }
            differ(sum, double(sums(j, i)));
            if (weighted) differ(sum, double(dheads(j, i)));
          }
        }
        for (Index a = 0; a < 150 && weighted; ++a) {
          const Index r = plan.assignment_row(a);
          double dot = 0;
          for (Index i = 0; i < width && r >= 0; ++i) dot += double(in(r, i)) * double(heads(a / share, i));
          differ(dot, double(dots(a)));
          differ(dot, double(dweight(a)));
        }
        CHECK(worst < 1e-5);
      }
    }
  }
}

}  // namespace teams_test
