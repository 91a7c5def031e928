#pragma once
/// @file
/// Tells a spike of the loss from its noise.

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace text {

/// A loss is a spike where it is not finite, or lies above the running mean by six running deviations and half a bit.
/// The loss falls while training, so the mean lies above it and a healthy run raises no alarm.
struct SpikeDetector {
  double mean = 0, variance = 0;
  long seen = 0;

  bool spike(double loss) const {
    if (!std::isfinite(loss)) return true;
    return seen >= 10 && loss > mean + std::max(6 * std::sqrt(variance), 0.5);
  }

  void add(double loss) {
    const double weight = std::max(0.05, 1.0 / double(++seen)), distance = loss - mean;
    mean += weight * distance;
    variance = (1 - weight) * (variance + weight * distance * distance);
  }

  nlohmann::json save() const { return {mean, variance, seen}; }
  void load(const nlohmann::json& saved) {
    mean = saved.at(0);
    variance = saved.at(1);
    seen = saved.at(2);
  }
};

}  // namespace text
