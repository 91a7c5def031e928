// Rows on hosts: the exponential, maxima, the largest keys and copies past the caches, against the obvious loops.
#include <algorithm>
#include <cmath>
#include <limits>
#include <moe/core/exp.hpp>
#include <moe/core/random.hpp>
#include <moe/core/stream_copy.hpp>
#include <moe/routing/detail/largest_keys.hpp>
#include <moe_test/catch.hpp>
#include <vector>

namespace rows_test {

using moe::ExpertId;
using moe::Index;
constexpr double infinity = std::numeric_limits<double>::infinity();

/// Keys with many equal ones, infinities, NaN and zeros of both signs.
template <class Real>
std::vector<Real> awkward_row(Index size, std::uint64_t seed) {
  std::vector<Real> row(static_cast<std::size_t>(size));
  for (Index i = 0; i < size; ++i) {
    const std::uint32_t draw = moe::random_bits({seed}, std::uint64_t(i), 0);
    const Real special[] = {Real(-infinity), Real(infinity), Real(std::nan("")), Real(0), Real(-0.0)};
    row[std::size_t(i)] = draw % 16 < 5 ? special[draw % 16] : Real(int(draw >> 8) % 40) / Real(8) - Real(2);
  }
  return row;
}

template <class Real>
std::vector<ExpertId> plain_largest(std::vector<Real> key, Index k) {
  std::vector<ExpertId> chosen;
  for (Index i = 0; i < k; ++i) {
    ExpertId best = moe::no_expert;
    Real floor = Real(-infinity);
    for (std::size_t e = 0; e < key.size(); ++e) {
      if (key[e] > floor) floor = key[e], best = ExpertId(e);
    }
    if (best != moe::no_expert) key[std::size_t(best)] = Real(-infinity);
    chosen.push_back(best);
  }
  return chosen;
}

template <class Real>
void check_rows() {
  const auto seed = std::uint64_t(7);
  for (const Index size : {1, 7, 8, 15, 16, 17, 31, 32, 64, 100, 160, 256, 257, 512, 1000, 1024, 1025, 1500}) {
    for (std::uint64_t draw = 0; draw < 8; ++draw) {
      CAPTURE(size, draw);
      const std::vector<Real> row = awkward_row<Real>(size, seed + draw);
      const Index k = std::min<Index>(size, 9);
      std::vector<ExpertId> chosen(static_cast<std::size_t>(k));
      std::vector<Real> key = row;
      moe::detail::take_largest(moe::Team{}, moe::Row<Real>{key.data(), size}, moe::Row<ExpertId>{chosen.data(), k});
      CHECK(chosen == plain_largest(row, k));

      Real first = Real(-infinity), second = first;
      for (const Real value : row) {
        if (value > first) {
          second = first;
          first = value;
        } else if (value > second) {
          second = value;
        }
      }
      Real a, b;
      moe::detail::row_largest_two(moe::Team{}, moe::Row<const Real>{row.data(), size}, a, b);
      CHECK((a == first && b == second));
      CHECK(moe::detail::row_max(moe::Team{}, moe::Row<const Real>{row.data(), size}) == first);
    }
  }
}

TEST_CASE("The largest keys of a row are those of the obvious loop") {
  check_rows<float>();
  check_rows<double>();
}

TEST_CASE("The exponential of rows is exact to two units in the last place") {
  for (double x = -103; x < 88.7; x += 0.00137) {
    const float given = float(x), result = moe::detail::exp(given);
    const double exact = std::exp(double(given));
    const double unit = double(std::nextafter(float(exact), float(infinity))) - double(float(exact));
    if (std::abs(double(result) - exact) > 2 * unit) FAIL("exp(" << given << ") is " << result);
  }
  CHECK(moe::detail::exp(0.0f) == 1.0f);
  CHECK(moe::detail::exp(float(-infinity)) == 0.0f);
  CHECK(moe::detail::exp(-200.0f) == 0.0f);
  CHECK(moe::detail::exp(float(infinity)) == float(infinity));
  CHECK(moe::detail::exp(89.0f) == float(infinity));
  CHECK(std::isnan(moe::detail::exp(std::numeric_limits<float>::quiet_NaN())));
  CHECK(moe::detail::exp(1.0) == Kokkos::exp(1.0));
}

TEST_CASE("Copies past the caches copy every byte, wherever rows begin") {
  std::vector<float> from(600), to(600);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = float(i + 1);
  for (const Index size : {1, 63, 64, 65, 200, 511}) {
    for (Index shift = 0; shift < 5; ++shift) {
      std::fill(to.begin(), to.end(), 0.0f);
      moe::detail::stream_copy(to.data() + shift, from.data() + 3, size, true);
      for (Index i = 0; i < 600; ++i) {
        const bool inside = i >= shift && i < shift + size;
        if (to[std::size_t(i)] != (inside ? from[std::size_t(i - shift + 3)] : 0.0f)) FAIL("at " << i);
      }
    }
  }
}

}  // namespace rows_test
