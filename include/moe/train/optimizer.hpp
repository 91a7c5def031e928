#pragma once
/// @file
/// AdamW and SGD over any struct of parameters (see core/parameter.hpp). Elementwise, hence deterministic.
///
/// Arrays of 16 bits (bfloat16, float16) have a master copy in f32 in the optimiser: steps act on it, and the array
/// gets the rounded value. Bytes a parameter, gradient included:
///
///     AdamW, f32      4 value + 4 gradient + 8 moments             = 16, of which a step reads 16 and writes 12
///     AdamW, 16 bits  2 value + 2 gradient + 4 master + 8 moments  = 16, of which a step reads 14 and writes 14
///
/// `step` is `prepare`, which writes the step's numbers (learning rate, bias corrections) where kernels read them, and
/// `apply`. A graph can hold `apply`; call `prepare` before each of its launches, on the same stream (docs/devices.md).
/// Copies of an optimiser share what it keeps, these numbers included.

#include <functional>
#include <vector>

#include "moe/core/context.hpp"
#include "moe/core/parameter.hpp"
#include "moe/train/detail/steps.hpp"

MOE_NAMESPACE_BEGIN

/// Says of each array whether weight decay acts on it.
using DecayMask = std::function<bool(const ParameterInfo&)>;

/// Matrices decay; vectors, biases and norms do not.
inline bool default_decay(const ParameterInfo& info) {
  return info.decay;
}

/// Values as in PyTorch.
struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 1e-2;
  DecayMask decays = default_decay;
};

/// Values as in PyTorch.
struct SGDOptions {
  double momentum = 0;
  bool nesterov = false;
  double weight_decay = 0;
  DecayMask decays = default_decay;
};

namespace detail {

/// A gradient struct may derive from its parameters' (MoELayer::Gradients): its arrays are those.
template <class Parameters, class Gradients>
Parameters& arrays_of(Gradients& gradients) {
  return gradients;
}

template <class Parameters>
std::vector<bool> decays_of(const Parameters& parameters, const DecayMask& decays) {
  std::vector<bool> result;  // in visiting order
  auto note = [&](std::string_view name, const auto& view) { result.push_back(decays(parameter_info(name, view))); };
  Parameters::visit(note, parameters);
  return result;
}

/// Calls f(number, value, arrays) for each array; a first step takes masters from the parameters.
template <class Space, class Parameters, class Gradients, class F>
void each_step(Context<Space>& ctx, Parameters& parameters, Gradients& gradients, const WideArrays<Parameters>& masters,
               bool first_step, const F& f) {
  std::size_t number = 0;
  auto one = [&](std::string_view, auto& value, auto& gradient) {
    using T = typename std::decay_t<decltype(value)>::value_type;
    const StepArrays<T> arrays{value.data(), gradient.data(), masters.data(number, value)};
    if (is_narrow<T> && first_step) {
      Kokkos::parallel_for("moe::masters", detail::Range<Space>(ctx.space, 0, Index(value.size())),
                           StartMaster<T>{value.data(), arrays.master});
    }
    f(number++, value, arrays);
  };
  Parameters::visit(one, parameters, arrays_of<Parameters>(gradients));
}

}  // namespace detail

/// Adam with decoupled weight decay and bias correction (Loshchilov and Hutter 2019, algorithm 2).
///
/// The first step takes masters from the parameters; from then on masters are what is trained.
template <class Parameters>
class AdamW {
 public:
  /// Throws ConfigError for options that cannot work.
  explicit AdamW(const Parameters& parameters, AdamWOptions options = {})
      : masters_(parameters, true), first_(parameters), second_(parameters), options_(std::move(options)) {
    detail::require<ConfigError>(options_.beta1 >= 0 && options_.beta1 < 1 && options_.beta2 >= 0 && options_.beta2 < 1,
                                 "moe::AdamW: beta1 ", options_.beta1, " and beta2 ", options_.beta2,
                                 "; both must lie in [0, 1).");
    detail::require<ConfigError>(options_.epsilon > 0, "moe::AdamW: epsilon is ", options_.epsilon,
                                 "; it must be positive.");
    decays_ = detail::decays_of(parameters, options_.decays);
  }

  Index step_count = 0;  ///< steps prepared

  /// One step on gradients times gradient_scale (see clip_factor and LossScale); gradients stay as they are.
  template <class Space, class Gradients>
  void step(Context<Space>& ctx, Parameters& parameters, Gradients& gradients, double learning_rate,
            double gradient_scale = 1) {
    prepare(ctx, learning_rate, gradient_scale);
    apply(ctx, parameters, gradients);
  }

  /// The numbers of the next step, for `apply` to read. Waits for nothing; the first call allocates.
  template <class Space>
  void prepare(Context<Space>& ctx, double learning_rate, double gradient_scale = 1) {
    const AdamWOptions& o = options_;
    const double steps = double(step_count + 1);
    numbers_.write(ctx.space, step_count,
                   {gradient_scale, 1 - learning_rate * o.weight_decay, learning_rate / (1 - std::pow(o.beta1, steps)),
                    1 / std::sqrt(1 - std::pow(o.beta2, steps))});
    ++step_count;
  }

  /// The step that `prepare` described.
  template <class Space, class Gradients>
  void apply(Context<Space>& ctx, Parameters& parameters, Gradients& gradients) {
    const bool first_step = numbers_.begin(ctx.space);
    const AdamWOptions& o = options_;
    auto update = [&](std::size_t number, const auto& value, const auto& arrays) {
      using T = typename std::decay_t<decltype(value)>::value_type;
      using Real = RouterReal<T>;
      detail::run_step(ctx, "moe::AdamW", Index(value.size()),
                       detail::AdamWStep<T>{arrays, numbers_.template data<Real>(), first_.data(number, value),
                                            second_.data(number, value), Real(o.beta1), Real(1 - o.beta1),
                                            Real(o.beta2), Real(1 - o.beta2), Real(o.epsilon), decays_[number]});
    };
    detail::each_step(ctx, parameters, gradients, masters_, first_step, update);
  }

  /// Calls f(name, array) for all that a checkpoint needs: "first_moment.*", "second_moment.*", "master.*".
  template <class F>
  void visit(F&& f) const {
    first_.visit("first_moment.", f);
    second_.visit("second_moment.", f);
    masters_.visit("master.", f);
  }

 private:
  detail::WideArrays<Parameters> masters_, first_, second_;
  detail::StepNumbers<detail::AdamWNumbers> numbers_{"moe::AdamW"};
  AdamWOptions options_;
  std::vector<bool> decays_;
};

/// Stochastic gradient descent, with momentum where asked; PyTorch's rules. Masters are as with AdamW.
template <class Parameters>
class SGD {
 public:
  /// Throws ConfigError for options that cannot work.
  explicit SGD(const Parameters& parameters, SGDOptions options = {})
      : masters_(parameters, true), options_(std::move(options)) {
    detail::require<ConfigError>(options_.momentum >= 0 && options_.momentum < 1, "moe::SGD: momentum is ",
                                 options_.momentum, "; it must lie in [0, 1).");
    if (options_.momentum > 0) velocity_ = detail::WideArrays<Parameters>(parameters);
    decays_ = detail::decays_of(parameters, options_.decays);
  }

  Index step_count = 0;  ///< steps prepared

  /// One step on gradients times gradient_scale; gradients stay as they are.
  template <class Space, class Gradients>
  void step(Context<Space>& ctx, Parameters& parameters, Gradients& gradients, double learning_rate,
            double gradient_scale = 1) {
    prepare(ctx, learning_rate, gradient_scale);
    apply(ctx, parameters, gradients);
  }

  /// The numbers of the next step, for `apply` to read. Waits for nothing; the first call allocates.
  template <class Space>
  void prepare(Context<Space>& ctx, double learning_rate, double gradient_scale = 1) {
    numbers_.write(ctx.space, step_count, {gradient_scale, learning_rate});
    ++step_count;
  }

  /// The step that `prepare` described.
  template <class Space, class Gradients>
  void apply(Context<Space>& ctx, Parameters& parameters, Gradients& gradients) {
    const bool first_step = numbers_.begin(ctx.space);
    const SGDOptions& o = options_;
    auto update = [&](std::size_t number, const auto& value, const auto& arrays) {
      using T = typename std::decay_t<decltype(value)>::value_type;
      using Real = RouterReal<T>;
      detail::run_step(
          ctx, "moe::SGD", Index(value.size()),
          detail::SGDStep<T>{arrays, numbers_.template data<Real>(), velocity_.data(number, value),
                             Real(decays_[number] ? o.weight_decay : 0.0), Real(o.momentum), o.nesterov, first_step});
    };
    detail::each_step(ctx, parameters, gradients, masters_, first_step, update);
  }

  /// Calls f(name, array) for all that a checkpoint needs: "velocity.*" with momentum, "master.*".
  template <class F>
  void visit(F&& f) const {
    velocity_.visit("velocity.", f);
    masters_.visit("master.", f);
  }

 private:
  detail::WideArrays<Parameters> masters_, velocity_;
  detail::StepNumbers<detail::SGDNumbers> numbers_{"moe::SGD"};
  SGDOptions options_;
  std::vector<bool> decays_;
};

MOE_NAMESPACE_END
