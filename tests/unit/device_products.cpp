// The products of devices, on hosts: by teams of one thread, and by whole teams with the matrix units emulated.
#include <moe_test/cases.hpp>
#include <moe_test/matrix_units.hpp>

#include "moe/kernels/gemm.hpp"

namespace device_products_test {

using namespace moe_test;
namespace device = moe::kernels::device;
using Host = Kokkos::DefaultHostExecutionSpace;

/// A grouped problem: experts without rows, sizes that no tile divides, and the sums in double.
template <class T>
struct Problem {
  std::vector<Index> offsets;
  Index bound, n, k, experts = Index(offsets.size()) - 1, last = offsets.back();
  moe::Vector<Index, Host> cuts = indices<Host>(offsets);
  moe::Matrix<T, Host> rows = random<moe::Matrix<T, Host>>(1, bound, k),
                       dout = random<moe::Matrix<T, Host>>(2, bound, n);
  moe::Tensor3<T, Host> weight = random<moe::Tensor3<T, Host>>(3, experts, n, k);
  using P = moe::kernels::Product<T>;

  P forward(T* c) const {
    return P::over_rows(cuts.data(), experts, bound, n, k, {rows.data(), k, 1, 0}, {weight.data(), k, 1, n * k}, c,
                        false);
  }
  P backward_rows(T* c) const {
    return P::over_rows(cuts.data(), experts, bound, k, n, {dout.data(), n, 1, 0}, {weight.data(), 1, k, n * k}, c,
                        false);
  }
  P backward_weight(T* c) const {
    return P::over_sum(cuts.data(), experts, n, k, {dout.data(), 1, n, 0}, {rows.data(), 1, k, 0}, c);
  }

  /// c = what `product` is to be, from c.
  static std::vector<double> expected(const P& product, Index size) {
    std::vector<double> c(product.c, product.c + size);
    for (Index e = 0; e < product.experts; ++e) {
      const P p = product.of(e);
      for (Index i = 0; i < p.m; ++i) {
        for (Index j = 0; j < p.n; ++j) {
          double sum = 0;
          for (Index l = 0; l < p.sum; ++l) {
            sum += double(p.a.data[i * p.a.row_stride + l * p.a.sum_stride]) *
                   double(p.b.data[j * p.b.row_stride + l * p.b.sum_stride]);
          }
          double& to = c[p.c - product.c + i * p.n + j];
          to = p.accumulate ? to + sum : sum;
        }
      }
    }
    return c;
  }
};

/// How far T may lie from a sum of `terms` numbers of size one.
template <class T>
double allowed(Index terms) {
  return sizeof(T) == 2 ? 1e-5 * double(terms) + 0.004 * 2 * std::sqrt(double(terms) + 1) : tolerance<T>(terms);
}

/// NaN where NaN was, else near.
template <class T>
void check_near(const T* got, const std::vector<double>& expected, double allowed) {
  double worst = 0;
  Index wrong = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double value = double(got[i]);
    if (std::isnan(expected[i]) || std::isnan(value)) {
      wrong += std::isnan(expected[i]) != std::isnan(value);
    } else {
      worst = std::max(worst, std::abs(value - expected[i]));
    }
  }
  CHECK(wrong == 0);
  CHECK(worst <= allowed);
}

/// All three products of a problem through `run(product)`.
template <class T, class Run>
void check_all(const Problem<T>& problem, const Run& run) {
  const auto check = [&](const auto& result, auto product, Index terms) {
    const auto expected = Problem<T>::expected(product, Index(result.size()));
    run(product);
    check_near(result.data(), expected, allowed<T>(terms));
  };
  const auto out = nans<moe::Matrix<T, Host>>(problem.bound, problem.n);
  check(out, problem.forward(out.data()), problem.k);
  const auto drows = nans<moe::Matrix<T, Host>>(problem.bound, problem.k);
  check(drows, problem.backward_rows(drows.data()), problem.n);
  const auto dweight = filled<moe::Tensor3<T, Host>>(0.5, problem.experts, problem.n, problem.k);
  check(dweight, problem.backward_weight(dweight.data()), problem.last);
}

/// A kernel of an engine for a product, whichever way its operands lie.
template <class Engine, class Given = void, class T>
void run_by_teams(const moe::kernels::Product<T>& product, Index teams) {
  using Finish = std::conditional_t<std::is_void_v<Given>, device::Store<T>, Given>;
  const bool a = product.a.sum_stride == 1, b = product.b.sum_stride == 1;
  if (a && b) return run_teams(device::TileProduct<T, Engine, true, true, Finish>(product, {}), teams);
  if (a) return run_teams(device::TileProduct<T, Engine, true, false, Finish>(product, {}), teams);
  run_teams(device::TileProduct<T, Engine, false, false, Finish>(product, {}), teams);
}

TEMPLATE_TEST_CASE("Products of devices agree with plain loops", "", float, double, moe::bfloat16, moe::float16) {
  for (const auto& [offsets, bound, n, k] :
       {std::tuple{std::vector<Index>{0, 0, 3, 3, 60, 61, 61}, Index(70), Index(13), Index(7)},
        {{0, 1}, 1, 1, 1},
        {{0, 0, 0}, 4, 5, 3},
        {{0, 130, 131, 131}, 131, 72, 80},
        {{0, 300, 450}, 450, 33, 65}}) {
    CAPTURE(bound, n, k);
    check_all(Problem<TestType>{offsets, bound, n, k}, [](const auto& p) { device::multiply(Host{}, p); });
  }
}

TEST_CASE("Teams of many threads agree with plain loops") {
  const Problem<float> problem{{0, 0, 3, 3, 80, 81}, 90, 40, 36};
  check_all(problem, [](const auto& p) { run_by_teams<moe::kernels::portable::ThreadTile<float, 128>>(p, 2); });
}

TEMPLATE_TEST_CASE("NVIDIA's matrix units, emulated", "", moe::bfloat16, moe::float16) {
  using T = TestType;
  const Problem<T> lines{{0, 0, 3, 3, 140, 141}, 150, 136, 72}, odd{{0, 20, 37}, 40, 19, 37};
  for (const Problem<T>* problem : {&lines, &odd}) {
    CAPTURE(problem->n);
    check_all(*problem, [](const auto& p) { run_by_teams<EmulatedWarpTile<T, 128, 128, 32, 2, 4, 1, 3>>(p, 2); });
    check_all(*problem, [](const auto& p) { run_by_teams<EmulatedWarpTile<T, 16, 64, 64, 1, 4, 1, 4>>(p, 3); });
  }
}

/// Threads of a host cannot exchange their sums: number by number.
template <class T>
struct StoreNumbers : device::Store<T> {
  static bool in_lines(const moe::kernels::Product<T>&) { return false; }
};

TEMPLATE_TEST_CASE("NVIDIA's warpgroups, emulated", "", moe::bfloat16, moe::float16) {
  using T = TestType;
  const Problem<T> lines{{0, 0, 3, 3, 140, 141}, 150, 136, 72}, odd{{0, 20, 37}, 40, 19, 37};
  for (const Problem<T>* problem : {&lines, &odd}) {
    CAPTURE(problem->n);
    check_all(*problem,
              [](const auto& p) { run_by_teams<EmulatedWarpgroupTile<T, 256, 1, 4>, StoreNumbers<T>>(p, 2); });
  }
}

TEST_CASE("NVIDIA's matrix units in TF32, emulated but for the rounding") {
  const Problem<float> problem{{0, 20, 150}, 150, 68, 44};
  check_all(problem, [](const auto& p) { run_by_teams<EmulatedWarpTile<float, 128, 128, 16, 2, 4, 1, 3>>(p, 1); });
  check_all(problem, [](const auto& p) { run_by_teams<EmulatedWarpTile<float, 16, 64, 32, 1, 4, 1, 4>>(p, 1); });
}

// As bench/device_kernels.py counts them (see tests/device_resources.cmake).
TEST_CASE("Teams of products take the scratch memory that is told of them") {
  namespace device = moe::kernels::device;
  using moe::bfloat16;
  using Finish = device::Activate<bfloat16, moe::SwiGLU>;
  using Large = device::TileProduct<bfloat16, EmulatedWarpTile<bfloat16, 128, 64, 32, 2, 4, 2, 3>, true, true, Finish>;
  CHECK(Large::bytes_of(256) == 63504);
  CHECK(Large::threads == 256);
  using Warpgroups = device::TileProduct<bfloat16, EmulatedWarpgroupTile<bfloat16, 128, 2, 4>, true, true, Finish>;
  CHECK(Warpgroups::bytes_of(256) == 199680);
}

TEMPLATE_TEST_CASE("AMD's matrix units, emulated", "", moe::bfloat16, moe::float16) {
  using T = TestType;
  const Problem<T> problem{{0, 0, 3, 3, 140, 141}, 150, 136, 72};
  check_all(problem, [](const auto& p) { run_by_teams<EmulatedWaveTile<T, 128, 128, 32, 2, 2, 1>>(p, 1); });
  check_all(problem, [](const auto& p) { run_by_teams<EmulatedWaveTile<T, 16, 128, 64, 1, 4, 1>>(p, 2); });
}

/// Keeps the sums of both parts.
struct KeepBoth {
  float* parts[2];
  template <class Sum>
  KOKKOS_FUNCTION void operator()(const moe::kernels::Product<float>& p, Index, Index row, Index column,
                                  const Sum* value) const {
    const Index at = p.c - parts[0] + row * p.n + column;
    parts[0][at] = value[0];
    parts[1][at] = value[1];
  }
};

TEST_CASE("Two operands side by side meet in one place, and rows are read by their numbers") {
  const Index tokens = 9, bound = 12, n = 40, k = 52;
  const auto offsets = indices<Host>({0, 5, 5, 11}), number = indices<Host>({8, -1, 0, 0, 3, 1, 2, 3, 4, 5, 8, 7});
  const auto x = random<moe::Matrix<float, Host>>(1, tokens, k);
  const auto weight = random<moe::Tensor3<float, Host>>(2, 3, 2 * n, k);
  const auto gate = nans<moe::Matrix<float, Host>>(bound, n), up = nans<moe::Matrix<float, Host>>(bound, n);
  auto product = moe::kernels::Product<float>::over_rows(offsets.data(), 3, bound, n, k, {x.data(), k, 1, 0},
                                                         {weight.data(), k, 1, 2 * n * k}, gate.data(), false);
  product.a.number = number.data();
  const KeepBoth finish{{gate.data(), up.data()}};
  const auto check = [&] {
    for (Index r = 0; r < 11; ++r) {
      const Index e = r < 5 ? 0 : 2, t = number(r);
      for (Index j = 0; j < n; ++j) {
        double sums[2] = {};
        for (Index l = 0; l < k && t >= 0; ++l) {
          for (int part = 0; part < 2; ++part) sums[part] += double(x(t, l)) * double(weight(e, part * n + j, l));
        }
        REQUIRE(std::abs(gate(r, j) - sums[0]) <= tolerance<float>(k));
        REQUIRE(std::abs(up(r, j) - sums[1]) <= tolerance<float>(k));
      }
    }
    CHECK(std::isnan(gate(11, 0)));
    Kokkos::deep_copy(gate, std::nanf(""));
    Kokkos::deep_copy(up, std::nanf(""));
  };
  device::multiply<2>(Host{}, product, finish);
  check();
  using Engine = EmulatedWarpTile<float, 16, 32, 32, 1, 4, 2, 4>;
  run_teams(device::TileProduct<float, Engine, true, true, KeepBoth>(product, finish), 2);
  check();
}

TEMPLATE_TEST_CASE("Dot products agree with plain loops, and a row's bits with any number of rows", "", float, double) {
  const Index n = 11, k = 45;
  const auto w = random<moe::Matrix<TestType, Host>>(2, n, k), x = random<moe::Matrix<TestType, Host>>(1, 70, k);
  const auto all = nans<moe::Matrix<TestType, Host>>(70, n), few = nans<moe::Matrix<TestType, Host>>(70, n);
  using P = moe::kernels::Product<TestType>;
  const auto product = [&](Index tokens, const auto& c) {
    return P::dense(tokens, n, k, {x.data(), k, 1, 0}, {w.data(), k, 1, 0}, c.data(), false);
  };
  const auto expected = Problem<TestType>::expected(product(70, all), all.size());
  device::dots(Host{}, product(70, all));
  check_near(all.data(), expected, tolerance<TestType>(k));
  device::dots(Host{}, product(3, few));
  CHECK(std::memcmp(all.data(), few.data(), 3 * n * sizeof(TestType)) == 0);
}

}  // namespace device_products_test
