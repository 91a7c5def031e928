#pragma once
/// @file
/// Gradients of the reference layer by central differences, choices and drops held.

#include <string>
#include <tuple>

#include "reference/layer.hpp"

namespace reference {

/// Calls f(name, array...) for every trained array, of any number of Parameters side by side.
template <class F, class... Same>
void visit(const F& f, Same&... same) {
  const auto ffn = [&](const std::string& name, auto&... of) {
    f(name + ".gate", of.gate...);
    f(name + ".up", of.up...);
    f(name + ".down", of.down...);
    f(name + ".gate_bias", of.gate_bias...);
    f(name + ".up_bias", of.up_bias...);
    f(name + ".down_bias", of.down_bias...);
  };
  const auto& first = std::get<0>(std::tie(same...));
  f(std::string("router"), same.router...);
  for (std::size_t e = 0; e < first.experts.size(); ++e) ffn("experts " + std::to_string(e), same.experts[e]...);
  for (std::size_t e = 0; e < first.shared.size(); ++e) ffn("shared " + std::to_string(e), same.shared[e]...);
  f(std::string("shared_gate"), same.shared_gate...);
}

struct Gradients {
  Matrix x;
  Parameters parameters;
};

/// Of L = sum(y * dy) + the losses. With a step of 1e-5 truncation is about 1e-11 and rounding about 1e-10, as outputs
/// that do not move cancel exactly: compare to 1e-8.
inline Gradients gradients(const Description& d, Parameters p, Batch batch, const Matrix& dy) {
  const Result base = forward(d, p, batch);
  const double step = 1e-5;
  const auto slope = [&](double& value) {
    const double old = value;
    value = old + step;
    const Result above = forward(d, p, batch, &base);
    value = old - step;
    const Result below = forward(d, p, batch, &base);
    value = old;
    double change = (above.y - below.y).cwiseProduct(dy).sum();
    for (std::size_t l = 0; l < d.losses.size(); ++l) change += above.losses[l] - below.losses[l];
    return change / (2 * step);
  };
  Gradients result{batch.x, p};
  const auto differentiate = [&](const std::string&, auto& array, auto& gradient) {
    for (Eigen::Index i = 0; i < array.size(); ++i) gradient.data()[i] = slope(array.data()[i]);
  };
  differentiate("x", batch.x, result.x);
  visit(differentiate, p, result.parameters);
  return result;
}

}  // namespace reference
