#pragma once
/// @file
/// Learning rates as functions of the step, counted from 0.

#include <algorithm>
#include <cmath>

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// Rises linearly to 1 over the warm-up's steps.
inline double warm(Index step, Index warmup) {
  return step < warmup ? double(step + 1) / double(warmup) : 1.0;
}

/// How far step is from `from` to `to`, within [0, 1].
inline double progress(Index step, Index from, Index to) {
  return to <= from ? 1.0 : std::clamp(double(step - from) / double(to - from), 0.0, 1.0);
}

}  // namespace detail

/// Warm-up, then the same rate for ever.
struct ConstantSchedule {
  double peak = 1e-3;
  Index warmup = 0;
  double operator()(Index step) const { return peak * detail::warm(step, warmup); }
};

/// Warm-up, then a half cosine down to `floor` at `steps`.
struct CosineSchedule {
  double peak = 1e-3;
  Index warmup = 0, steps = 1;
  double floor = 0;
  double operator()(Index step) const {
    if (step < warmup) return peak * detail::warm(step, warmup);
    const double half = 0.5 * (1 + std::cos(3.141592653589793 * detail::progress(step, warmup, steps)));
    return floor + (peak - floor) * half;
  }
};

/// Warm-up, then a straight line down to `floor` at `steps`.
struct LinearSchedule {
  double peak = 1e-3;
  Index warmup = 0, steps = 1;
  double floor = 0;
  double operator()(Index step) const {
    if (step < warmup) return peak * detail::warm(step, warmup);
    return peak + (floor - peak) * detail::progress(step, warmup, steps);
  }
};

/// Warm-up, a plateau, then a straight line down to `floor` over the last `decay` steps (Hu et al. 2024, MiniCPM).
struct WarmupStableDecay {
  double peak = 1e-3;
  Index warmup = 0, steps = 1, decay = 0;
  double floor = 0;
  double operator()(Index step) const {
    if (step < warmup) return peak * detail::warm(step, warmup);
    return peak + (floor - peak) * (decay > 0 ? detail::progress(step, steps - decay, steps) : 0.0);
  }
};

/// peak * sqrt(warmup / step) behind the warm-up (T5, Switch Transformer).
struct InverseSquareRootSchedule {
  double peak = 1e-2;
  Index warmup = 10000;
  double operator()(Index step) const {
    return step < warmup ? peak * detail::warm(step, warmup)
                         : peak * std::sqrt(double(std::max<Index>(warmup, 1)) / double(step + 1));
  }
};

MOE_NAMESPACE_END
