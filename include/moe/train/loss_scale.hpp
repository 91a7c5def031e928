#pragma once
/// @file
/// `LossScale`: keeps gradients within float16's range.

#include <array>
#include <cmath>

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

/// Values as in PyTorch, which has no floor.
struct LossScaleOptions {
  double start = 65536;
  double growth = 2;     ///< after `interval` good steps in a row
  double backoff = 0.5;  ///< after a bad one
  Index interval = 2000;
  double floor = 1;  ///< the scale never falls below it
};

/// Dynamic loss scaling (Micikevicius et al. 2018, "Mixed precision training", section 3.2, by the rule of
/// torch.amp.GradScaler): the loss is multiplied by `value()` before backward, so that small gradients do not vanish in
/// float16, and gradients are divided by it in the optimiser's own pass. A step whose gradients are not finite is
/// skipped, and the scale falls; after a while without such steps it grows.
///
///     model.backward(ctx, ..., scale.value());
///     const double by = scale.value(), norm = moe::gradient_norm(ctx, gradients) / by;
///     if (scale.update(std::isfinite(norm)))
///       optimizer.step(ctx, parameters, gradients, learning_rate, moe::clip_factor(norm, 1.0) / by);
class LossScale {
 public:
  /// Throws ConfigError for options that cannot work.
  explicit LossScale(LossScaleOptions options = {}) : options_(options), value_(options.start) {
    detail::require<ConfigError>(
        options.growth > 1 && options.backoff > 0 && options.backoff < 1 && options.interval > 0,
        "moe::LossScale: growth ", options.growth, ", backoff ", options.backoff, ", interval ", options.interval,
        "; growth must pass 1, backoff lie between 0 and 1, and interval be positive.");
    detail::require<ConfigError>(options.floor > 0 && options.start >= options.floor, "moe::LossScale: start ",
                                 options.start, ", floor ", options.floor,
                                 "; the floor must be positive, and the start no less.");
  }

  /// What to multiply the loss by.
  double value() const { return value_; }
  /// Can it fall no further? Gradients that are not finite then come from elsewhere.
  bool at_floor() const { return value_ <= options_.floor; }

  /// After each backward pass of a step: were its gradients finite? Returns whether to take the step.
  bool update(bool finite) {
    if (!finite) {
      value_ = value_ * options_.backoff > options_.floor ? value_ * options_.backoff : options_.floor;
      good_steps_ = 0;
    } else if (++good_steps_ == options_.interval) {
      if (std::isfinite(float(value_ * options_.growth))) value_ *= options_.growth;
      good_steps_ = 0;
    }
    return finite;
  }

  /// Scale and good steps in a row, for checkpoints.
  std::array<double, 2> save() const { return {value_, double(good_steps_)}; }
  void load(const std::array<double, 2>& saved) {
    value_ = saved[0];
    good_steps_ = Index(saved[1]);
  }

 private:
  LossScaleOptions options_;
  double value_;
  Index good_steps_ = 0;
};

MOE_NAMESPACE_END
