#include "combination.hpp"

#include <moe_test/catch.hpp>
#include <random>

namespace combination {

namespace {

/// A copy on the host, or the array itself where it lies there.
auto host(const auto& view) {
  return Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, view);
}

using HostSpace = Kokkos::DefaultHostExecutionSpace;

/// Choices as the host reads them.
moe::Assignments<double, HostSpace> host(const moe::Assignments<double, Space>& a) {
  moe::Assignments<double, HostSpace> result{a.tokens,       a.bound,        a.uniform_k, host(a.token_offsets),
                                             host(a.expert), host(a.weight), {}};
  if (a.live.is_allocated()) result.live = host(a.live);
  return result;
}

void randomise(const auto& view, unsigned seed, double size, double centre = 0) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<double> uniform(centre - size, centre + size);
  const auto copy = host(view);
  for (std::size_t i = 0; i < copy.size(); ++i) copy.data()[i] = uniform(engine);
  Kokkos::deep_copy(view, copy);
}

Eigen::MatrixXd to_eigen(const moe::Matrix<const double, Space>& view) {
  const auto copy = host(view);
  Eigen::MatrixXd result(view.extent(0), view.extent(1));
  for (Eigen::Index i = 0; i < result.rows(); ++i) {
    for (Eigen::Index j = 0; j < result.cols(); ++j) result(i, j) = copy(i, j);
  }
  return result;
}
Eigen::VectorXd to_eigen(const Vector& view) {
  const auto copy = host(view);
  return Eigen::Map<const Eigen::VectorXd>(copy.data(), Eigen::Index(copy.size()));
}

/// What the weight of an expert counts in the sum that is differentiated.
double coefficient(Index token, Index expert) {
  return std::sin(double(3 * token + 5 * expert + 1));
}

double weighted_sum(const reference::RouterResult& r) {
  double sum = 0;
  for (std::size_t t = 0; t < r.chosen.size(); ++t) {
    for (std::size_t i = 0; i < r.chosen[t].size(); ++i)
      sum += r.live[t][i] * r.weights[t][i] * coefficient(Index(t), r.chosen[t][i]);
  }
  return sum;
}

void compare(const std::string& what, double got, double wanted) {
  INFO(what << ": " << got << " instead of " << wanted);
  CHECK(std::abs(got - wanted) <= 1e-8 * (1 + std::abs(wanted)));
}

}  // namespace

Trial::Trial(const std::string& name) : name(name), dx("dx", tokens, hidden) {
  Matrix x("x", tokens, hidden);
  randomise(x, 1, 2);
  batch.x = x;
  ctx.training = false;
  balance_bias = Vector("balance_bias", experts);
  randomise(balance_bias, 2, 0.3);
}

void Trial::fill() {
  randomise(parameters.weight, 3, 0.8);
  randomise(parameters.bias, 4, 0.5);
  randomise(parameters.scale, 5, 0.5, 1);
  randomise(parameters.per_expert_scale, 6, 0.5, 1);
  for (const Vector& view : {gradients.scale, gradients.per_expert_scale}) {
    if (view.is_allocated()) Kokkos::deep_copy(view, 0);  // they start at one
  }
}

moe::RoutingGradients<double, Space> Trial::weight_gradient() const {
  const auto a = host(routing.assignments);
  moe::RoutingGradients<double, Space> of{
      Vector("dweight", a.bound), Matrix("dscores", tokens, experts), Matrix("dlogits", tokens, experts), {}, {}};
  const auto dweight = host(of.dweight);
  for (Index t = 0; t < tokens; ++t) {
    for (Index i = a.begin(t); i < a.end(t); ++i) {
      const bool live = a.expert(i) >= 0 && (!a.live.is_allocated() || a.live(i) != 0);
      dweight(i) = live ? coefficient(t, a.expert(i)) : 0;
    }
  }
  Kokkos::deep_copy(of.dweight, dweight);
  return of;
}

void Trial::judge(const reference::RouterDescription& d) const {
  INFO(name);
  reference::RouterParameters p;
  p.weight = to_eigen(moe::Matrix<const double, Space>(parameters.weight));
  p.bias = to_eigen(parameters.bias);
  p.balance_bias = to_eigen(balance_bias);
  p.per_expert = to_eigen(parameters.per_expert_scale);
  if (parameters.scale.is_allocated()) p.scale = host(parameters.scale)(0);
  Eigen::MatrixXd x = to_eigen(batch.x);
  const auto expected = reference::route(d, p, x);

  const auto a = host(routing.assignments);
  for (Index t = 0; t < tokens; ++t) {
    INFO("token " << t);
    std::vector<int> chosen, live;
    std::vector<double> weights;
    for (Index i = a.begin(t); i < a.end(t); ++i) {
      if (a.expert(i) < 0) continue;
      chosen.push_back(a.expert(i));
      live.push_back(!a.live.is_allocated() || a.live(i) != 0);
      weights.push_back(a.weight(i));
    }
    CHECK(chosen == expected.chosen[t]);
    CHECK(live == expected.live[t]);
    if (chosen.size() != expected.chosen[t].size()) continue;
    for (std::size_t i = 0; i < weights.size(); ++i) compare("weight", weights[i], expected.weights[t][i]);
  }

  const double step = 1e-5;
  const auto slope = [&](double& value) {
    const double old = value;
    value = old + step;
    const double above = weighted_sum(reference::route(d, p, x, &expected));
    value = old - step;
    const double below = weighted_sum(reference::route(d, p, x, &expected));
    value = old;
    return (above - below) / (2 * step);
  };
  const Eigen::MatrixXd dx_values = to_eigen(dx), dweight = to_eigen(gradients.weight);
  const Eigen::VectorXd dbias = to_eigen(gradients.bias), dper_expert = to_eigen(gradients.per_expert_scale);
  for (Index t = 0; t < tokens; ++t) {
    for (Index h = 0; h < hidden; ++h) compare("dx", dx_values(t, h), slope(x(t, h)));
  }
  for (Index e = 0; e < experts; ++e) {
    for (Index h = 0; h < hidden; ++h) compare("dweight", dweight(e, h), slope(p.weight(e, h)));
    if (gradients.bias.is_allocated()) compare("dbias", dbias(e), slope(p.bias(e)));
    if (gradients.per_expert_scale.is_allocated()) compare("dper_expert_scale", dper_expert(e), slope(p.per_expert(e)));
  }
  if (gradients.scale.is_allocated()) compare("dscale", host(gradients.scale)(0), slope(p.scale));
}

}  // namespace combination
