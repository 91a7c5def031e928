#include "measures.hpp"

#include <algorithm>
#include <cmath>

#include "../train_text/report/data.hpp"

namespace zoo {
namespace {

using report::at;
using Json = nlohmann::json;

/// The mean load of a layer from step `from` on, as shares.
std::vector<double> mean_shares(const Json& steps, const report::Table& history, double from) {
  std::vector<double> mean(history.front().size());
  int count = 0;
  for (std::size_t i = 0; i < history.size() && i < steps.size(); ++i) {
    if (steps[i].get<double>() < from) continue;
    for (std::size_t e = 0; e < mean.size(); ++e) mean[e] += history[i][e];
    ++count;
  }
  for (double& share : mean) share /= std::max(1, count);
  return mean;
}

}  // namespace

Json measures(const Json& run) {
  const double from = 0.8 * report::number(run, "/steps");
  double violation = 0, average = 0, entropy = 0;
  int points = 0, dead = 0;
  for (const svg::Point& point : report::curve(run, "curve", "maximum_violation")) {
    if (point.x < from || !std::isfinite(point.y)) continue;
    violation += point.y;
    ++points;
  }
  const Json &steps = at(run, "/load_history/steps"), &layers = at(run, "/load_history/layers");
  for (const Json& layer : layers) {
    const report::Table history = report::table(layer);
    if (history.empty()) continue;
    const std::vector<double> shares = mean_shares(steps, history, from);
    const double experts = double(shares.size());
    average += (*std::max_element(shares.begin(), shares.end()) * experts - 1) / double(layers.size());
    for (const double share : shares) {
      if (share > 0) entropy -= share * std::log(share) / std::log(experts) / double(layers.size());
      if (share * experts < 0.1) ++dead;
    }
  }
  return {{"violation", violation / std::max(1, points)},
          {"average_violation", average},
          {"load_entropy", entropy},
          {"dead_experts", dead},
          {"milliseconds", 1e3 * report::number(run, "/tokens_per_step") / report::number(run, "/tokens_per_second")}};
}

}  // namespace zoo
