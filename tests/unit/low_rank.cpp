// The kernels of low-rank updates against sums written out: odd sizes, types, rows that lie nowhere, determinism.
#include <moe/kernels/low_rank.hpp>

#include "moe_test/cases.hpp"

namespace low_rank_test {

using namespace moe_test;

struct Sizes {
  Index in, out, rank;
  std::vector<Index> rows;  ///< of each adapter
  bool numbered = true;
};
const Sizes sizes[] = {
    {16, 16, 4, {3, 0, 1}},           {33, 17, 5, {0, 70, 2, 0, 9}}, {513, 300, 16, {1, 130, 0}, false},
    {40, 1030, 24, {8, 1, 1, 1, 65}}, {7, 3, 64, {2, 5}, false},     {260, 64, 1, {12, 12, 0}},
};

/// One call, its inputs random and its outputs begun with others.
template <class T, class Space>
struct Problem {
  using Real = moe::RouterReal<T>;
  Sizes of;
  Index adapters, rows, places;
  moe::kernels::LowRankRows<T, Space> plan;
  std::vector<Index> offsets{0}, number, ranks;
  std::vector<double> scale;
  moe::Matrix<T, Space> x, dout, out, dx, hidden;
  moe::Tensor3<T, Space> a, b, da, db;
  moe::Vector<Real, Space> dscale;

  explicit Problem(const Sizes& sizes) : of(sizes), adapters(Index(sizes.rows.size())) {
    for (const Index count : of.rows) offsets.push_back(offsets.back() + count);
    rows = offsets.back();
    places = rows + 3;
    for (Index r = 0; r < rows; ++r) number.push_back(of.numbered ? (r % 6 == 4 ? -1 : places - 1 - r) : r);
    const auto factor = random<moe::Vector<Real, Space>>(1, rows);
    for (Index r = 0; r < rows; ++r) scale.push_back(double(host(factor)(r)));
    plan.offsets = indices<Space>(offsets);
    if (of.numbered) plan.number = indices<Space>(number);
    plan.scale = factor;
    plan.rows = rows;
    x = random<moe::Matrix<T, Space>>(2, places, of.in);
    dout = random<moe::Matrix<T, Space>>(3, places, of.out);
    out = random<moe::Matrix<T, Space>>(4, places, of.out);
    dx = random<moe::Matrix<T, Space>>(5, places, of.in);
    a = random<moe::Tensor3<T, Space>>(6, adapters, of.rank, of.in);
    b = random<moe::Tensor3<T, Space>>(7, adapters, of.out, of.rank);
    da = random<moe::Tensor3<T, Space>>(8, adapters, of.rank, of.in);
    db = random<moe::Tensor3<T, Space>>(9, adapters, of.out, of.rank);
    hidden = nans<moe::Matrix<T, Space>>(rows, of.rank);
    dscale = nans<moe::Vector<Real, Space>>(rows);
  }

  /// Adapters of less rank, the rest of their matrices zeros; the kernels are told where `say`.
  void lower_ranks(bool say) {
    const auto ha = host(a), hb = host(b);
    for (Index n = 0; n < adapters; ++n) {
      ranks.push_back(1 + (n * 3) % of.rank);
      for (Index k = ranks.back(); k < of.rank; ++k) {
        for (Index h = 0; h < of.in; ++h) ha(n, k, h) = T(0);
        for (Index o = 0; o < of.out; ++o) hb(n, o, k) = T(0);
      }
    }
    Kokkos::deep_copy(a, ha);
    Kokkos::deep_copy(b, hb);
    if (say) plan.rank = indices<Space>(ranks);
  }

  void run(bool add) {
    moe::Context<Space> ctx;
    using M = moe::Matrix<const T, Space>;
    using W = moe::Tensor3<const T, Space>;
    moe::kernels::low_rank_forward<T, Space>(ctx, plan, M(x), W(a), W(b), hidden, out, add);
    moe::kernels::low_rank_backward<T, Space>(ctx, plan, M(x), W(a), W(b), M(hidden), M(dout), {da, db, dx, dscale},
                                              add);
    ctx.space.fence();
  }
};

/// The largest difference over the largest number.
template <class View>
double distance(const View& view, const std::vector<double>& expected) {
  const auto got = host(view);
  REQUIRE(got.size() == expected.size());
  double worst = 0, largest = 1;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(double(got.data()[i]) - expected[i]);
    worst = difference <= worst ? worst : difference;
    largest = std::max(largest, std::abs(expected[i]));
  }
  return worst / largest;
}
template <class View>
std::vector<double> numbers(const View& view) {
  const auto copy = host(view);
  return std::vector<double>(copy.data(), copy.data() + copy.size());
}

template <class T, class Space>
void compare(Problem<T, Space>& problem, bool add) {
  const Sizes& of = problem.of;
  const Index in = of.in, out = of.out, rank = of.rank;
  const auto x = numbers(problem.x), dout = numbers(problem.dout), a = numbers(problem.a), b = numbers(problem.b);
  auto y = numbers(problem.out), dx = numbers(problem.dx), da = numbers(problem.da), db = numbers(problem.db);
  std::vector<double> dscale(std::size_t(problem.rows));
  for (Index n = 0; n < problem.adapters; ++n) {
    const double *of_a = &a[std::size_t(n * rank * in)], *of_b = &b[std::size_t(n * out * rank)];
    for (Index r = problem.offsets[n]; r < problem.offsets[n + 1]; ++r) {
      const Index place = problem.number[r];
      if (place < 0) continue;
      const double factor = problem.scale[r];
      std::vector<double> h(std::size_t(rank), 0.0), dh(std::size_t(rank), 0.0);
      for (Index k = 0; k < rank; ++k) {
        for (Index i = 0; i < in; ++i) h[k] += of_a[k * in + i] * x[place * in + i];
        for (Index o = 0; o < out; ++o) dh[k] += of_b[o * rank + k] * dout[place * out + o];
        dscale[r] += h[k] * dh[k];
      }
      for (Index o = 0; o < out; ++o) {
        double& to = y[place * out + o];
        if (!add) to = 0;
        for (Index k = 0; k < rank; ++k) {
          to += factor * of_b[o * rank + k] * h[k];
          db[(n * out + o) * rank + k] += factor * dout[place * out + o] * h[k];
        }
      }
      for (Index i = 0; i < in; ++i) {
        double& to = dx[place * in + i];
        if (!add) to = 0;
        for (Index k = 0; k < rank; ++k) {
          to += factor * of_a[k * in + i] * dh[k];
          da[(n * rank + k) * in + i] += factor * dh[k] * x[place * in + i];
        }
      }
    }
  }
  problem.run(add);
  // Sums of `in` and `out` numbers of size one that grow as their root; numbers between are rounded to T.
  const double bound = std::is_same_v<T, moe::bfloat16>  ? 0x1p-6
                       : std::is_same_v<T, moe::float16> ? 0x1p-9
                                                         : 16 * double(std::numeric_limits<T>::epsilon());
  CHECK(distance(problem.out, y) < bound);
  CHECK(distance(problem.dx, dx) < bound);
  CHECK(distance(problem.da, da) < bound);
  CHECK(distance(problem.db, db) < bound);
  // Rows that lie nowhere have no gradient worth reading.
  auto got = host(clone(problem.dscale));
  for (Index r = 0; r < problem.rows; ++r) {
    if (problem.number[r] < 0) got(r) = 0;
  }
  CHECK(distance(got, dscale) < bound);
}

template <class T, class Space>
void compare_all() {
  for (const Sizes& of : sizes) {
    for (const bool add : {false, true}) {
      for (const int ranks : {0, 1, 2}) {
        INFO("in " << of.in << ", out " << of.out << ", rank " << of.rank << ", add " << add << ", ranks " << ranks);
        Problem<T, Space> problem(of);
        if (ranks > 0) problem.lower_ranks(ranks == 2);
        compare(problem, add);
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("Low-rank updates and their gradients are what the sums say", "", Cases) {
  compare_all<typename TestType::T, typename TestType::Space>();
}

TEMPLATE_TEST_CASE("Low-rank updates in 16 bits are those in f32, rounded", "", moe::bfloat16, moe::float16) {
  compare_all<TestType, Kokkos::DefaultExecutionSpace>();
}

TEMPLATE_LIST_TEST_CASE("A row's update has the same bits whatever stands beside it", "", Cases) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  const Sizes many{33, 45, 20, {70, 3, 1, 0, 40}, false};
  Problem<T, Space> all(many);
  all.run(true);
  // The same rows with one adapter's alone, the others' gone.
  for (Index n = 0; n < Index(many.rows.size()); ++n) {
    Problem<T, Space> one(many);
    std::vector<Index> offsets(many.rows.size() + 1, 0), number;
    for (Index r = all.offsets[n]; r < all.offsets[n + 1]; ++r) number.push_back(r);
    for (std::size_t e = std::size_t(n) + 1; e < offsets.size(); ++e) offsets[e] = Index(number.size());
    if (number.empty()) continue;
    moe::Vector<typename Problem<T, Space>::Real, Space> scale("scale", number.size());
    const auto own = Kokkos::create_mirror_view(Kokkos::HostSpace{}, scale);
    for (std::size_t r = 0; r < number.size(); ++r) own(r) = host(all.plan.scale)(number[r]);
    Kokkos::deep_copy(scale, own);
    one.plan.offsets = indices<Space>(offsets);
    one.plan.number = indices<Space>(number);
    one.plan.scale = scale;
    one.plan.rows = Index(number.size());
    one.run(true);
    const auto part = [&](const auto& view, Index first, Index count) {
      return clone(Kokkos::subview(host(view), Kokkos::pair<Index, Index>(first, first + count), Kokkos::ALL));
    };
    const Index first = number.front(), count = Index(number.size());
    CHECK(same_bits(part(one.out, first, count), part(all.out, first, count)));
    CHECK(same_bits(part(one.dx, first, count), part(all.dx, first, count)));
    const auto of = [&](const auto& view) { return clone(Kokkos::subview(host(view), n, Kokkos::ALL, Kokkos::ALL)); };
    CHECK(same_bits(of(one.da), of(all.da)));
    CHECK(same_bits(of(one.db), of(all.db)));
  }
}

}  // namespace low_rank_test
