#pragma once
/// @file
/// Adapted layers: batches with frozen weights, sums written out, and gradients against central differences.

#include <moe/adapters/adapted_linear.hpp>
#include <string>

#include "moe_test/cases.hpp"

namespace moe_test {

/// A row-major matrix of doubles.
struct Table {
  Index rows = 0, columns = 0;
  std::vector<double> data;
  Table() = default;
  Table(Index r, Index c) : rows(r), columns(c), data(std::size_t(r * c)) {}
  /// Any view, its first extent and all others together.
  template <class View>
  explicit Table(const View& view) {
    const auto copy = host(view);
    rows = Index(copy.extent(0));
    columns = rows == 0 ? 0 : Index(copy.size()) / rows;
    for (std::size_t i = 0; i < copy.size(); ++i) data.push_back(double(copy.data()[i]));
  }
  double& operator()(Index r, Index c) { return data[std::size_t(r * columns + c)]; }
  double operator()(Index r, Index c) const { return data[std::size_t(r * columns + c)]; }
};

/// row t of x, times a matrix of `rows` rows that starts at `from`.
inline std::vector<double> times(const double* from, Index rows, const std::vector<double>& x) {
  std::vector<double> result(std::size_t(rows), 0.0);
  for (Index i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < x.size(); ++j) result[std::size_t(i)] += from[std::size_t(i) * x.size() + j] * x[j];
  }
  return result;
}
inline std::vector<double> row_of(const Table& table, Index r) {
  const auto begin = table.data.begin() + r * table.columns;
  return {begin, begin + table.columns};
}
inline void add(std::vector<double>& to, double factor, const std::vector<double>& what) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += factor * what[i];
}
inline std::vector<double> softmax(std::vector<double> z) {
  const double best = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (double& v : z) sum += v = std::exp(v - best);
  for (double& v : z) v /= sum;
  return z;
}

/// The largest difference of a view and a table.
template <class View>
double worst_difference(const View& view, const Table& expected) {
  const auto copy = host(view);
  if (copy.size() != expected.data.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (std::size_t i = 0; i < copy.size(); ++i) {
    const double error = std::abs(double(copy.data()[i]) - expected.data[i]);
    worst = error <= worst ? worst : error;
  }
  return worst;
}

/// B_e A_e x of a layer's low-rank adapters.
template <class T, class Space>
std::vector<double> low_rank(const moe::LowRank<T, Space>& p, Index e, const std::vector<double>& x) {
  const Table a(p.a), b(p.b);
  const auto down = times(a.data.data() + (a.rows == 1 ? 0 : e) * a.columns, p.rank(), x);
  return times(b.data.data() + e * b.columns, p.out(), down);
}

/// Every parameter random, so that none hides behind one that starts at zero.
template <class Layer>
void randomise_parameters(Layer& layer, unsigned seed = 31) {
  auto draw = [&](std::string_view, auto& view) { randomise(view, ++seed); };
  Layer::Parameters::visit(draw, layer.parameters);
}

template <class T, class Space>
moe::FrozenLinear<T, Space> frozen_linear(Index out, Index in, bool bias = false) {
  moe::FrozenLinear<T, Space> base;
  base.weight = random<moe::Matrix<T, Space>>(91, out, in);
  if (bias) base.bias = random<moe::Vector<T, Space>>(92, out);
  return base;
}

/// Tokens in three sequences of tasks 0, 2 and 1, some padded.
template <class T, class Space>
moe::Batch<T, Space> adapter_batch(const moe::Matrix<T, Space>& x, bool padded = true) {
  moe::Batch<T, Space> batch;
  batch.x = x;
  const Index tokens = x.extent(0);
  batch.sequence_offsets = indices<Space>({0, tokens / 2, tokens / 2 + 1, tokens});
  moe::Vector<std::int32_t, Space> tasks("tasks", 3);
  const auto task = Kokkos::create_mirror_view(Kokkos::HostSpace{}, tasks);
  task(0) = 0, task(1) = 2, task(2) = 1;
  Kokkos::deep_copy(tasks, task);
  batch.task_ids = tasks;
  if (padded && tokens > 4) {
    moe::Vector<std::uint8_t, Space> mask("mask", tokens);
    Kokkos::deep_copy(mask, std::uint8_t(1));
    Kokkos::deep_copy(Kokkos::subview(mask, Kokkos::pair<int, int>(1, 3)), std::uint8_t(0));
    batch.mask = mask;
  }
  return batch;
}

/// Gradients of sum(y g) + losses by x, the router's input and every parameter, against central differences.
template <class Layer>
void check_adapted(Layer& layer, Index in, Index out, bool training = false, bool router_input = false) {
  using Space = typename Layer::Space;
  using M = moe::Matrix<double, Space>;
  constexpr Index tokens = 11;
  moe::Context<Space> ctx;
  ctx.training = training;
  ctx.step = 3;
  typename Layer::Tape tape;
  auto gradients = layer.gradients();
  const auto x = random<M>(1, tokens, in), g = random<M>(2, tokens, out);
  auto batch = adapter_batch<double, Space>(x);
  M given;
  if (router_input) {
    given = random<M>(3, tokens, layer.config().router_hidden);
    batch.router_input = given;
  }
  const auto value = [&] {
    const auto y = host(layer.forward(ctx, batch, tape));
    const auto weight = host(g);
    double sum = tape.loss();
    for (std::size_t i = 0; i < y.size(); ++i) sum += y.data()[i] * weight.data()[i];
    return sum;
  };
  value();
  const auto dx = clone(layer.backward(ctx, g, tape, gradients));
  const auto drouter = router_input ? clone(tape.drouter_input) : M();
  check_gradient(x, dx, value);
  if (router_input) check_gradient(given, drouter, value);
  auto compare = [&](std::string_view name, auto& parameter, auto& gradient) {
    CAPTURE(std::string(name));
    check_gradient(parameter, gradient, value);
    const auto values = host(gradient);
    CHECK(std::any_of(values.data(), values.data() + values.size(), [](double v) { return std::abs(v) > 1e-6; }));
  };
  Layer::Parameters::visit(compare, layer.parameters, static_cast<typename Layer::Parameters&>(gradients));
}

}  // namespace moe_test
