#pragma once
/// @file
/// One combination of router policies against the reference router. What does not depend on the combination's types is
/// compiled once, in combination.cpp: there are hundreds of them.

#include <moe/routing/balancer.hpp>
#include <moe/routing/expert_choice.hpp>
#include <moe/routing/router.hpp>
#include <string>

#include "reference/router.hpp"

namespace combination {

using Space = Kokkos::DefaultExecutionSpace;
using moe::Index;
using Matrix = moe::Matrix<double, Space>;
using Vector = moe::Vector<double, Space>;

inline constexpr Index tokens = 10, hidden = 5, experts = 8;

/// The router's arrays, whichever it has; views share their memory with it.
struct Arrays {
  Matrix weight;
  Vector bias, scale, per_expert_scale;

  void operator()(std::string_view name, const Matrix& view) {
    if (name == "weight") weight = view;
  }
  void operator()(std::string_view name, const Vector& view) {
    if (name == "bias") bias = view;
    if (name == "scale") scale = view;
    if (name == "per_expert_scale") per_expert_scale = view;
  }
};

/// What a router is run on and what came out.
struct Trial {
  explicit Trial(const std::string& name);

  std::string name;
  moe::Context<Space> ctx;
  moe::Batch<double, Space> batch;
  moe::Routing<double, Space> routing;
  Arrays parameters, gradients;
  Vector balance_bias;  // (E)
  Matrix dx;

  /// Random numbers in the router's arrays.
  void fill();
  /// The gradient of each expert's weight, for live choices.
  moe::RoutingGradients<double, Space> weight_gradient() const;
  /// Compares choices, weights and gradients with the reference.
  void judge(const reference::RouterDescription& description) const;
};

/// Runs a router forward and backward, and lets the reference judge it.
template <class Router>
void check(const std::string& name, const Router& router, const reference::RouterDescription& description) {
  Trial trial(name);
  auto parameters = router.template parameters<double, Space>({experts, hidden});
  auto gradients = router.template parameters<double, Space>({experts, hidden});
  auto buffers = router.template buffers<double, Space>({experts, hidden});
  using Parameters = decltype(parameters);
  Parameters::visit(trial.parameters, parameters);
  Parameters::visit(trial.gradients, gradients);
  trial.fill();
  if constexpr (Router::has_balancer) buffers.balance_bias = trial.balance_bias;
  router.forward(trial.ctx, trial.batch, parameters, buffers, experts, trial.routing);
  router.backward(trial.ctx, trial.batch, parameters, trial.routing, trial.weight_gradient(), trial.dx, gradients);
  trial.judge(description);
}

}  // namespace combination
