#pragma once
/// @file
/// Axes of charts: from values to places, and their ticks.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "svg.hpp"

namespace svg {

/// Maps values to places; ticks inside [from, to] only.
struct Axis {
  double from = 0, to = 1, start = 0, end = 1;
  bool log = false;
  std::vector<double> ticks;

  double operator()(double value) const {
    const double share = log ? std::log(value / from) / std::log(to / from) : (value - from) / (to - from);
    return start + (end - start) * std::clamp(share, 0.0, 1.0);
  }
  std::string label(std::size_t tick) const {
    if (log) return fmt::format("{:g}", ticks[tick]);
    return tick_label(ticks[tick], ticks.size() > 1 ? ticks[1] - ticks[0] : 1);
  }
};

struct Range {
  double low = INFINITY, high = -INFINITY;
  void add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

/// With `to_ticks` it goes to the next ticks, else it ends where the values do.
inline Axis make_x(Range range, double start, double end, int count, bool to_ticks = false) {
  if (!(range.high > range.low)) range.high = range.low + 1;
  Axis axis{range.low, range.high, start, end, false, round_ticks(range.low, range.high, count)};
  if (to_ticks) {
    axis.from = axis.ticks.front();
    axis.to = axis.ticks.back();
  }
  std::erase_if(axis.ticks, [&](double tick) { return tick < axis.from - 1e-9 || tick > axis.to + 1e-9; });
  return axis;
}

inline Axis make_y(Range range, double start, double end, int count, bool log) {
  if (!log) {
    Axis axis{0, 1, start, end, false, round_ticks(range.low, range.high, count)};
    axis.from = axis.ticks.front();
    axis.to = axis.ticks.back();
    return axis;
  }
  const double from = std::floor(std::log10(range.low) + 1e-9), to = std::ceil(std::log10(range.high) - 1e-9);
  Axis axis{range.low / 1.1, range.high * 1.1, start, end, true, {}};
  for (double power = from; power <= to; ++power) {
    for (const int digit : {1, 2, 3, 4, 5, 6, 8}) {  // fewer of them, the more decades there are
      const bool shown = digit == 1 || (to - from <= 2 && (digit == 2 || digit == 5)) || axis.to / axis.from < 10;
      const double tick = digit * std::pow(10, power);
      if (shown && tick >= axis.from && tick <= axis.to) axis.ticks.push_back(tick);
    }
  }
  return axis;
}

}  // namespace svg
