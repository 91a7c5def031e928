#pragma once
/// @file
/// AdamW and SGD over any struct of parameters (see core/parameter.hpp). Elementwise, hence deterministic.

#include <functional>
#include <vector>

#include "moe/core/context.hpp"
#include "moe/core/parameter.hpp"

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

template <class T>
struct AdamWElement {
  T *value, *first, *second;
  const T* gradient;
  double rate, decay, beta1, beta2, correction1, correction2, epsilon;
  KOKKOS_FUNCTION void operator()(Index i) const {
    using Real = RouterReal<T>;
    const Real g = Real(gradient[i]);
    const Real m = Real(beta1) * Real(first[i]) + Real(1 - beta1) * g;
    const Real v = Real(beta2) * Real(second[i]) + Real(1 - beta2) * g * g;
    first[i] = T(m);
    second[i] = T(v);
    const Real step = m / Real(correction1) / (Kokkos::sqrt(v / Real(correction2)) + Real(epsilon));
    value[i] = T(Real(value[i]) * Real(1 - rate * decay) - Real(rate) * step);
  }
};

template <class T>
struct SGDElement {
  T *value, *velocity;
  const T* gradient;
  double rate, decay, momentum;
  bool nesterov, first_step;
  KOKKOS_FUNCTION void operator()(Index i) const {
    using Real = RouterReal<T>;
    Real g = Real(gradient[i]) + Real(decay) * Real(value[i]);
    if (velocity != nullptr) {
      const Real u = first_step ? g : Real(momentum) * Real(velocity[i]) + g;
      velocity[i] = T(u);
      g = nesterov ? g + Real(momentum) * u : u;
    }
    value[i] = T(Real(value[i]) - Real(rate) * g);
  }
};

/// A gradient struct may derive from its parameters' (MoELayer::Gradients): its arrays are those.
template <class Parameters, class Gradients>
Parameters& arrays_of(Gradients& gradients) {
  return gradients;
}

template <class Space, class View, class Functor>
void each_element(Context<Space>& ctx, const char* name, const View& view, const Functor& functor) {
  Kokkos::parallel_for(name, Kokkos::RangePolicy<Space>(ctx.space, 0, Index(view.size())), functor);
}

}  // namespace detail

/// Adam with decoupled weight decay and bias correction (Loshchilov and Hutter 2019, algorithm 2).
template <class Parameters>
class AdamW {
 public:
  explicit AdamW(const Parameters& parameters, AdamWOptions options = {})
      : first_moment(detail::zeros_like(parameters)),
        second_moment(detail::zeros_like(parameters)),
        options_(std::move(options)) {
    detail::require<ConfigError>(options_.beta1 >= 0 && options_.beta1 < 1 && options_.beta2 >= 0 && options_.beta2 < 1,
                                 "moe::AdamW: beta1 ", options_.beta1, " and beta2 ", options_.beta2,
                                 "; both must lie in [0, 1).");
    detail::require<ConfigError>(options_.epsilon > 0, "moe::AdamW: epsilon is ", options_.epsilon,
                                 "; it must be positive.");
    auto note = [&](std::string_view name, const auto& view) {
      decays_.push_back(options_.decays(parameter_info(name, view)));
    };
    Parameters::visit(note, parameters);
  }

  Parameters first_moment, second_moment;  ///< for checkpoints
  Index step_count = 0;                    ///< steps done

  /// One step; gradients stay as they are.
  template <class Space, class Gradients>
  void step(Context<Space>& ctx, Parameters& parameters, Gradients& gradients, double learning_rate) {
    ++step_count;
    std::size_t number = 0;
    const double c1 = 1 - std::pow(options_.beta1, double(step_count)),
                 c2 = 1 - std::pow(options_.beta2, double(step_count));
    auto update = [&](std::string_view, auto& value, auto& gradient, auto& first, auto& second) {
      using T = typename std::decay_t<decltype(value)>::value_type;
      const double decay = decays_[number++] ? options_.weight_decay : 0.0;
      detail::each_element(
          ctx, "moe::AdamW", value,
          detail::AdamWElement<T>{value.data(), first.data(), second.data(), gradient.data(), learning_rate, decay,
                                  options_.beta1, options_.beta2, c1, c2, options_.epsilon});
    };
    Parameters::visit(update, parameters, detail::arrays_of<Parameters>(gradients), first_moment, second_moment);
  }

 private:
  AdamWOptions options_;
  std::vector<bool> decays_;  // in visiting order
};

/// Stochastic gradient descent, with momentum where asked; PyTorch's rules.
template <class Parameters>
class SGD {
 public:
  explicit SGD(const Parameters& parameters, SGDOptions options = {}) : options_(std::move(options)) {
    detail::require<ConfigError>(options_.momentum >= 0 && options_.momentum < 1, "moe::SGD: momentum is ",
                                 options_.momentum, "; it must lie in [0, 1).");
    if (options_.momentum > 0) velocity = detail::zeros_like(parameters);
    auto note = [&](std::string_view name, const auto& view) {
      decays_.push_back(options_.decays(parameter_info(name, view)));
    };
    Parameters::visit(note, parameters);
  }

  Parameters velocity;   ///< for checkpoints; unallocated without momentum
  Index step_count = 0;  ///< steps done

  /// One step; gradients stay as they are.
  template <class Space, class Gradients>
  void step(Context<Space>& ctx, Parameters& parameters, Gradients& gradients, double learning_rate) {
    const bool first_step = step_count++ == 0;
    std::size_t number = 0;
    auto update = [&](std::string_view, auto& value, auto& gradient, auto& speed) {
      using T = typename std::decay_t<decltype(value)>::value_type;
      const double decay = decays_[number++] ? options_.weight_decay : 0.0;
      detail::each_element(ctx, "moe::SGD", value,
                           detail::SGDElement<T>{value.data(), speed.data(), gradient.data(), learning_rate, decay,
                                                 options_.momentum, options_.nesterov, first_step});
    };
    Parameters::visit(update, parameters, detail::arrays_of<Parameters>(gradients), velocity);
  }

 private:
  SGDOptions options_;
  std::vector<bool> decays_;
};

MOE_NAMESPACE_END
