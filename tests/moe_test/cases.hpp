#pragma once
/// @file
/// What unit tests share: the spaces and types to run on, arrays of random
/// numbers or NaN, and gradients by central differences.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <moe_test/catch.hpp>
#include <random>
#include <tuple>
#include <type_traits>

#include "moe/core/types.hpp"

namespace moe_test {

using moe::Index;

template <class ExecutionSpace, class Real>
struct Case {
  using Space = ExecutionSpace;
  using T = Real;
};

/// Every enabled backend; the host's default may be Serial itself.
using Cases = std::tuple<Case<Kokkos::DefaultHostExecutionSpace, float>, Case<Kokkos::DefaultHostExecutionSpace, double>
#if defined(KOKKOS_ENABLE_SERIAL) && defined(KOKKOS_ENABLE_OPENMP)
                         ,
                         Case<Kokkos::Serial, float>, Case<Kokkos::Serial, double>
#endif
#if defined(KOKKOS_ENABLE_CUDA) || defined(KOKKOS_ENABLE_HIP)
                         ,
                         Case<Kokkos::DefaultExecutionSpace, float>, Case<Kokkos::DefaultExecutionSpace, double>
#endif
                         >;

/// A copy on the host, or the array itself where it lies there.
template <class View>
auto host(const View& view) {
  return Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, view);
}

template <class View, class... Extents>
View filled(double value, Extents... extents) {
  View view("moe_test::filled", std::size_t(extents)...);
  Kokkos::deep_copy(view, typename View::value_type(value));
  return view;
}

template <class View, class... Extents>
View nans(Extents... extents) {
  return filled<View>(std::numeric_limits<double>::quiet_NaN(), extents...);
}

/// Uniform in [-1, 1].
template <class View>
void randomise(const View& view, unsigned seed) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  const auto copy = host(view);
  for (std::size_t i = 0; i < copy.size(); ++i) copy.data()[i] = typename View::value_type(uniform(engine));
  Kokkos::deep_copy(view, copy);
}

template <class View, class... Extents>
View random(unsigned seed, Extents... extents) {
  View view("moe_test::random", std::size_t(extents)...);
  randomise(view, seed);
  return view;
}

template <class Space>
moe::Vector<Index, Space> indices(const std::vector<Index>& values) {
  moe::Vector<Index, Space> view("moe_test::indices", values.size());
  const auto copy = Kokkos::create_mirror_view(Kokkos::HostSpace{}, view);
  std::copy(values.begin(), values.end(), copy.data());
  Kokkos::deep_copy(view, copy);
  return view;
}

/// A fresh copy in the same memory.
template <class View>
View clone(const View& view) {
  View copy("moe_test::clone", view.layout());
  Kokkos::deep_copy(copy, view);
  return copy;
}

/// How far a result in T may lie from one in double, for sums of `terms` numbers of size one.
template <class T>
double tolerance(Index terms) {
  return 4.0 * double(terms + 4) * double(std::numeric_limits<T>::epsilon());
}

/// Are all bits equal?
template <class A, class B>
bool same_bits(const A& a, const B& b) {
  const auto x = host(a);
  const auto y = host(b);
  static_assert(std::is_same_v<typename A::non_const_value_type, typename B::non_const_value_type>);
  return x.size() == y.size() && (x.size() == 0 || std::memcmp(x.data(), y.data(), x.size() * sizeof(*x.data())) == 0);
}

/// Checks `gradient` against central differences of `loss()`, a function of `input`, in double.
template <class View, class Gradient, class Loss>
void check_gradient(const View& input, const Gradient& gradient, const Loss& loss) {
  const double step = 1e-5;
  const auto values = host(clone(input));
  const auto expected = host(gradient);
  REQUIRE(expected.size() == values.size());
  const auto at = [&](std::size_t i, double value) {
    const double old = values.data()[i];
    values.data()[i] = value;
    Kokkos::deep_copy(input, values);
    const double result = loss();
    values.data()[i] = old;
    Kokkos::deep_copy(input, values);
    return result;
  };
  double worst = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double x = values.data()[i];
    const double slope = (at(i, x + step) - at(i, x - step)) / (2 * step);
    const double error = std::abs(slope - expected.data()[i]) / (1 + std::abs(slope));
    worst = error <= worst ? worst : error;  // NaN stays
  }
  CHECK(worst < 1e-8);
}

}  // namespace moe_test
