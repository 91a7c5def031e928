// The products against plain loops in double, and what they promise about bits.
#include <moe_test/cases.hpp>
#include <vector>

#include "moe/kernels/gemm.hpp"

namespace {

using namespace moe_test;

struct Sizes {
  std::vector<Index> offsets;
  Index bound, n, k;
};

// Experts without rows first, last and in between; widths that no vector divides; sums and rows longer than a block.
const std::vector<Sizes> all_sizes = {{{0, 0, 3, 3, 60, 61, 61}, 70, 13, 7},
                                      {{0, 1}, 1, 1, 1},
                                      {{0, 0, 0}, 0, 5, 3},
                                      {{0, 0, 0}, 4, 5, 3},
                                      {{0, 300, 301, 301}, 301, 33, 65},
                                      {{0, 7, 105, 106}, 110, 130, 523},
                                      {{0, 400, 1500}, 1500, 37, 1100},
                                      // Small in one way each.
                                      {{0, 8, 8, 20}, 20, 4, 300},
                                      {{0, 9, 60}, 60, 64, 160},
                                      {{0, 30}, 30, 80, 1500},
                                      {{0, 20}, 20, 1500, 48}};

template <class View, class Host>
double largest_difference(const View& result, const Host& expected, Index first, Index last) {
  const auto got = host(result);
  double worst = 0;
  for (Index i = first; i < last; ++i) {
    const double error = std::abs(double(got.data()[i]) - expected[i]);
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

template <class View>
bool all_nan(const View& view, Index first) {
  const auto values = host(view);
  return std::all_of(values.data() + first, values.data() + values.size(), [](double x) { return std::isnan(x); });
}

// Rows behind the last expert's are no one's: NaN there must not spread.
template <class View>
void spoil_rows_behind(const View& rows, Index last) {
  const auto values = host(rows);
  std::fill(values.data() + last * Index(values.extent(1)), values.data() + values.size(),
            std::numeric_limits<typename View::value_type>::quiet_NaN());
  Kokkos::deep_copy(rows, values);
}

template <class Number>
struct SixteenBits {
  using T = Number;
  using Space = Kokkos::DefaultExecutionSpace;
};

}  // namespace

TEMPLATE_LIST_TEST_CASE("Grouped products agree with plain loops", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  using M = moe::Matrix<T, Space>;
  using W = moe::Tensor3<T, Space>;
  const Space space{};
  for (const Sizes& sizes : all_sizes) {
    const Index experts = Index(sizes.offsets.size()) - 1, last = sizes.offsets.back(), n = sizes.n, k = sizes.k;
    CAPTURE(sizes.bound, n, k);
    const auto offsets = indices<Space>(sizes.offsets);
    const auto rows = random<M>(1, sizes.bound, k);
    const auto dout = random<M>(2, sizes.bound, n);
    const auto weight = random<W>(3, experts, n, k);
    spoil_rows_behind(rows, last);
    spoil_rows_behind(dout, last);
    const auto x = host(rows);
    const auto dy = host(dout);
    const auto w = host(weight);
    std::vector<double> y(last * n), dx(last * k), dw(experts * n * k, 0.5);
    for (Index e = 0; e < experts; ++e) {
      for (Index r = sizes.offsets[e]; r < sizes.offsets[e + 1]; ++r) {
        for (Index i = 0; i < n; ++i) {
          for (Index j = 0; j < k; ++j) {
            y[r * n + i] += double(x(r, j)) * double(w(e, i, j));
            dx[r * k + j] += double(dy(r, i)) * double(w(e, i, j));
            dw[(e * n + i) * k + j] += double(dy(r, i)) * double(x(r, j));
          }
        }
      }
    }

    const auto out = nans<M>(sizes.bound, n);
    moe::kernels::grouped_forward<T, Space>(space, offsets, rows, weight, out);
    CHECK(largest_difference(out, y, 0, last * n) <= tolerance<T>(k));
    CHECK(all_nan(out, last * n));

    const auto drows = nans<M>(sizes.bound, k);
    moe::kernels::grouped_backward_rows<T, Space>(space, offsets, dout, weight, drows);
    CHECK(largest_difference(drows, dx, 0, last * k) <= tolerance<T>(n));
    CHECK(all_nan(drows, last * k));

    const auto dweight = filled<W>(0.5, experts, n, k);
    moe::kernels::grouped_backward_weight<T, Space>(space, offsets, dout, rows, dweight);
    CHECK(largest_difference(dweight, dw, 0, experts * n * k) <= tolerance<T>(last));
    const auto added = host(dweight);
    for (Index e = 0; e < experts; ++e) {
      if (sizes.offsets[e] != sizes.offsets[e + 1]) continue;
      CHECK(std::all_of(added.data() + e * n * k, added.data() + (e + 1) * n * k, [](T g) { return g == T(0.5); }));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("Dense products agree with plain loops", "", Cases) {
  using Space = typename TestType::Space;
  using T = typename TestType::T;
  using M = moe::Matrix<T, Space>;
  const Space space{};
  const Index n = 19, k = 45;
  for (const Index tokens : {0, 1, 50, 300}) {
    CAPTURE(tokens);
    const auto x = random<M>(1, tokens, k), dout = random<M>(2, tokens, n), w = random<M>(3, n, k);
    const auto hx = host(x), hd = host(dout), hw = host(w);
    std::vector<double> y(tokens * n), dx(tokens * k), dw(n * k, 0.25);
    for (Index t = 0; t < tokens; ++t) {
      for (Index i = 0; i < n; ++i) {
        for (Index j = 0; j < k; ++j) {
          y[t * n + i] += double(hx(t, j)) * double(hw(i, j));
          dx[t * k + j] += double(hd(t, i)) * double(hw(i, j));
          dw[i * k + j] += double(hd(t, i)) * double(hx(t, j));
        }
      }
    }
    const auto out = nans<M>(tokens, n), gradient = nans<M>(tokens, k), dweight = filled<M>(0.25, n, k);
    moe::kernels::dense_forward<T, Space>(space, x, w, out);
    CHECK(largest_difference(out, y, 0, tokens * n) <= tolerance<T>(k));
    moe::kernels::dense_backward_rows<T, Space>(space, dout, w, gradient, false);
    CHECK(largest_difference(gradient, dx, 0, tokens * k) <= tolerance<T>(n));
    moe::kernels::dense_backward_rows<T, Space>(space, dout, w, gradient, true);
    for (double& d : dx) d *= 2;
    CHECK(largest_difference(gradient, dx, 0, tokens * k) <= 2 * tolerance<T>(n));
    moe::kernels::dense_backward_weight<T, Space>(space, dout, x, dweight);
    CHECK(largest_difference(dweight, dw, 0, n * k) <= tolerance<T>(tokens));
  }
}

template <class T, class Space>
void check_rows_alone() {
  using M = moe::Matrix<T, Space>;
  using W = moe::Tensor3<T, Space>;
  const Space space{};
  const Index bound = 109, k = 300;
  for (const Index n : {70, 21, 20, 3, 1}) {
    const auto rows = random<M>(1, bound, k), out = nans<M>(bound, n), drows = nans<M>(bound, k);
    const auto dout = random<M>(2, bound, n);
    const auto weight = random<W>(3, 3, n, k);
    const auto offsets = indices<Space>({0, 1, 101, 109});
    moe::kernels::grouped_forward<T, Space>(space, offsets, rows, weight, out);
    moe::kernels::grouped_backward_rows<T, Space>(space, offsets, dout, weight, drows);
    for (const Index r : {Index(0), Index(1), Index(53), Index(100), Index(108)}) {
      CAPTURE(r);
      const Index e = r < 1 ? 0 : r < 101 ? 1 : 2;
      const auto pick = Kokkos::pair<Index, Index>(r, r + 1);
      const auto own_out = nans<M>(1, n), own_drows = nans<M>(1, k), row = M("row", 1, k), drow = M("drow", 1, n);
      Kokkos::deep_copy(row, Kokkos::subview(rows, pick, Kokkos::ALL));
      Kokkos::deep_copy(drow, Kokkos::subview(dout, pick, Kokkos::ALL));
      std::vector<Index> alone(4, 0);
      for (Index i = e + 1; i < 4; ++i) alone[i] = 1;
      moe::kernels::grouped_forward<T, Space>(space, indices<Space>(alone), row, weight, own_out);
      moe::kernels::grouped_backward_rows<T, Space>(space, indices<Space>(alone), drow, weight, own_drows);
      CHECK(same_bits(own_out, Kokkos::subview(out, pick, Kokkos::ALL)));
      CHECK(same_bits(own_drows, Kokkos::subview(drows, pick, Kokkos::ALL)));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("A row's product does not depend on the rows around it", "", Cases) {
  check_rows_alone<typename TestType::T, typename TestType::Space>();
}
TEMPLATE_TEST_CASE("Nor does it in 16 bits", "", moe::bfloat16, moe::float16) {
  check_rows_alone<TestType, Kokkos::DefaultExecutionSpace>();
}

// Operands are rounded to 16 bits beforehand, sums are f32, and each result is rounded once: where it accumulates, too.
TEMPLATE_PRODUCT_TEST_CASE("Products of 16-bit numbers round once", "", SixteenBits, (moe::bfloat16, moe::float16)) {
  using T = typename TestType::T;
  using Space = typename TestType::Space;
  using M = moe::Matrix<T, Space>;
  using W = moe::Tensor3<T, Space>;
  const Space space{};
  for (const Sizes& sizes : {Sizes{{0, 3, 3, 65}, 70, 39, 2500}, Sizes{{0, 200, 200, 450}, 460, 136, 264}}) {
    const Index n = sizes.n, k = sizes.k, experts = 3;
    CAPTURE(n, k);
    const auto offsets = indices<Space>(sizes.offsets);
    const auto rows = random<M>(1, sizes.bound, k), dout = random<M>(2, sizes.bound, n);
    const auto out = random<M>(4, sizes.bound, n), drows = random<M>(6, sizes.bound, k);
    const auto weight = random<W>(3, experts, n, k), dweight = random<W>(5, experts, n, k);
    const auto x = host(rows), dy = host(dout);
    const auto w = host(weight), before = host(random<W>(5, experts, n, k));  // on hosts host() copies nothing
    moe::kernels::grouped_forward<T, Space>(space, offsets, rows, weight, out);
    moe::kernels::grouped_backward_rows<T, Space>(space, offsets, dout, weight, drows);
    moe::kernels::grouped_backward_weight<T, Space>(space, offsets, dout, rows, dweight);
    const auto y = host(out), dx = host(drows);
    const auto dw = host(dweight);
    Index wrong = 0;
    const auto check = [&](double got, double first, Index terms, const auto& left, const auto& right) {
      double sum = first, magnitude = std::abs(first);
      for (Index i = 0; i < terms; ++i) {
        sum += double(left(i)) * double(right(i));
        magnitude += std::abs(double(left(i)) * double(right(i)));
      }
      wrong += std::abs(got - sum) > std::abs(sum) / 256 + magnitude * 4e-6;
    };
    for (Index e = 0; e < experts; ++e) {
      const Index begin = sizes.offsets[e], end = sizes.offsets[e + 1];
      for (Index r = begin; r < end; ++r) {
        for (Index i = 0; i < n; ++i)
          check(
              y(r, i), 0, k, [&](Index j) { return x(r, j); }, [&](Index j) { return w(e, i, j); });
        for (Index j = 0; j < k; ++j)
          check(
              dx(r, j), 0, n, [&](Index i) { return dy(r, i); }, [&](Index i) { return w(e, i, j); });
      }
      for (Index i = 0; i < n; ++i) {
        for (Index j = 0; j < k; ++j) {
          check(
              dw(e, i, j), before(e, i, j), end - begin, [&](Index r) { return dy(begin + r, i); },
              [&](Index r) { return x(begin + r, j); });
        }
      }
    }
    CHECK(wrong == 0);
  }
}

// Both ways to cut, from both layouts, for kernels that take floats and for those that take pairs.
TEMPLATE_TEST_CASE("Operands are cut into lines", "", float, moe::bfloat16) {
  using moe::bfloat16;
  const auto check = [&]<class Factor>(Factor) {
    using Blocks = moe::kernels::cpu::OperandBlocks<TestType, Factor>;
    const Index width = 70;
    std::vector<TestType> data;
    for (Index i = 0; i < width * width; ++i) data.push_back(TestType(float(i % 251)));
    const moe::kernels::Operand<TestType> along{data.data(), width, 1, 0}, across{data.data(), 1, width, 0};
    for (const auto& from : {along, across}) {
      for (const Index live : {16, 5}) {
        for (const Index end : {64, 9}) {
          const Index first = 20, k = 6;
          alignas(64) float rows[16][16], lines[16][16];
          float *row[16], *line[16];
          for (int i = 0; i < 16; ++i) row[i] = rows[i], line[i] = lines[i];
          Blocks::template pack<true>(from, first, live, k, end, row);
          Blocks::template pack<false>(from, first, live, k, end, line);
          Index wrong = 0;
          for (Index i = 0; i < live; ++i) {
            for (Index j = 0; j < Blocks::depth; ++j) {
              const Index at = (first + i) * from.row_stride + (k + j) * from.sum_stride;
              const float expected = k + j < end ? float(data[at]) : 0.0f;
              const auto* in_row = reinterpret_cast<const Factor*>(rows[i]);
              const auto* in_line = reinterpret_cast<const Factor*>(lines[j / Blocks::in_word]);
              wrong += float(in_row[j]) != expected;
              wrong += float(in_line[i * Blocks::in_word + j % Blocks::in_word]) != expected;
            }
          }
          for (Index i = live; i < 16; ++i) wrong += lines[0][i] != 0;
          CHECK(wrong == 0);
        }
      }
    }
  };
  check(float{});
  if constexpr (std::is_same_v<TestType, bfloat16>) check(bfloat16{});
}

#if defined(KOKKOS_ENABLE_SERIAL) && defined(KOKKOS_ENABLE_OPENMP)
TEMPLATE_TEST_CASE("Many threads give the bits of one", "", float, double) {
  using M = moe::Matrix<TestType, Kokkos::Serial>;
  using W = moe::Tensor3<TestType, Kokkos::Serial>;
  const Index bound = 211, n = 90, k = 310;
  const auto rows = random<M>(1, bound, k), dout = random<M>(2, bound, n);
  const auto weight = random<W>(3, 4, n, k);
  const auto offsets = indices<Kokkos::Serial>({0, 100, 100, 103, 211});
  const auto out = nans<M>(bound, n), many_out = nans<M>(bound, n);
  const auto dweight = filled<W>(0, 4, n, k), many_dweight = filled<W>(0, 4, n, k);
  moe::kernels::grouped_forward<TestType, Kokkos::Serial>({}, offsets, rows, weight, out);
  moe::kernels::grouped_forward<TestType, Kokkos::OpenMP>({}, offsets, rows, weight, many_out);
  moe::kernels::grouped_backward_weight<TestType, Kokkos::Serial>({}, offsets, dout, rows, dweight);
  moe::kernels::grouped_backward_weight<TestType, Kokkos::OpenMP>({}, offsets, dout, rows, many_dweight);
  CHECK(same_bits(out, many_out));
  CHECK(same_bits(dweight, many_dweight));
}
#endif
