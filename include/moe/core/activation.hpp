#pragma once
/// @file
/// Activations of an FFN.
///
/// A plain activation is a struct with `static constexpr bool gated = false`, `value(x)` and `derivative(x)`; a
/// gated one (hidden = value(gate) * up; Shazeer 2020, "GLU variants improve transformer") says `gated = true`. One
/// that treats `up` too has `value(gate, up)` and `gradient(gate, up, dgate, dup)`, which sets the two slopes.

#include "moe/core/exp.hpp"
#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

/// max(x, 0); derivative 0 at 0.
struct ReLU {
  using policy = kind::activation;
  static constexpr bool gated = false;
  template <class Real>
  KOKKOS_FUNCTION static Real value(Real x) {
    return x > Real(0) ? x : Real(0);
  }
  template <class Real>
  KOKKOS_FUNCTION static Real derivative(Real x) {
    return x > Real(0) ? Real(1) : Real(0);
  }
};

/// max(x, 0)^2 (So et al. 2021, "Primer"; Nemotron-H).
struct SquaredReLU {
  using policy = kind::activation;
  static constexpr bool gated = false;
  template <class Real>
  KOKKOS_FUNCTION static Real value(Real x) {
    return x > Real(0) ? x * x : Real(0);
  }
  template <class Real>
  KOKKOS_FUNCTION static Real derivative(Real x) {
    return x > Real(0) ? Real(2) * x : Real(0);
  }
};

/// tanh(x).
struct Tanh {
  using policy = kind::activation;
  static constexpr bool gated = false;
  template <class Real>
  KOKKOS_FUNCTION static Real value(Real x) {
    return Kokkos::tanh(x);
  }
  template <class Real>
  KOKKOS_FUNCTION static Real derivative(Real x) {
    const Real t = Kokkos::tanh(x);
    return Real(1) - t * t;
  }
};

/// x, for projections.
struct Linear {
  using policy = kind::activation;
  static constexpr bool gated = false;
  template <class Real>
  KOKKOS_FUNCTION static Real value(Real x) {
    return x;
  }
  template <class Real>
  KOKKOS_FUNCTION static Real derivative(Real) {
    return Real(1);
  }
};

/// x Phi(x), exact (Hendrycks and Gimpel 2016).
struct GELU {
  using policy = kind::activation;
  static constexpr bool gated = false;
  template <class Real>
  KOKKOS_FUNCTION static Real value(Real x) {
    return Real(0.5) * x * (Real(1) + Kokkos::erf(x * Real(0.7071067811865476)));
  }
  template <class Real>
  KOKKOS_FUNCTION static Real derivative(Real x) {
    return Real(0.5) * (Real(1) + Kokkos::erf(x * Real(0.7071067811865476))) +
           x * Real(0.3989422804014327) * detail::exp(Real(-0.5) * x * x);
  }
};

/// x Phi(x) by its tanh approximation, as in GPT-2, T5 v1.1 and Gemma (Hendrycks and Gimpel 2016).
struct GELUTanh {
  using policy = kind::activation;
  static constexpr bool gated = false;
  template <class Real>
  KOKKOS_FUNCTION static Real value(Real x) {
    return x / (Real(1) + detail::exp(Real(-2) * inner(x)));  // (1 + tanh(u)) / 2 is the sigmoid of 2u
  }
  template <class Real>
  KOKKOS_FUNCTION static Real derivative(Real x) {
    const Real s = Real(1) / (Real(1) + detail::exp(Real(-2) * inner(x)));
    return s + Real(2) * x * s * (Real(1) - s) * Real(0.7978845608028654) * (Real(1) + Real(3 * 0.044715) * x * x);
  }

 private:
  template <class Real>
  KOKKOS_FUNCTION static Real inner(Real x) {
    return Real(0.7978845608028654) * (x + Real(0.044715) * x * x * x);
  }
};

/// x sigmoid(x).
struct SiLU {
  using policy = kind::activation;
  static constexpr bool gated = false;
  template <class Real>
  KOKKOS_FUNCTION static Real value(Real x) {
    return x / (Real(1) + detail::exp(-x));
  }
  template <class Real>
  KOKKOS_FUNCTION static Real derivative(Real x) {
    const Real s = Real(1) / (Real(1) + detail::exp(-x));
    return s * (Real(1) + x * (Real(1) - s));
  }
};

/// SiLU(gate) * up: Mixtral, DeepSeek, Qwen.
struct SwiGLU : SiLU {
  static constexpr bool gated = true;
};

/// g sigmoid(alpha g) (u + shift) with g = min(gate, limit) and u clamped to +-limit. gpt-oss: limit 7, alpha 1.702,
/// shift 1; DeepSeek-V4: alpha 1, shift 0.
struct ClampedSwiGLU {
  using policy = kind::activation;
  static constexpr bool gated = true;
  double limit = 7, alpha = 1.702, shift = 1;

  template <class Real>
  KOKKOS_FUNCTION Real value(Real gate, Real up) const {
    const Real g = low(gate);
    return g * sigmoid(g) * (clamp(up) + Real(shift));
  }
  template <class Real>
  KOKKOS_FUNCTION void gradient(Real gate, Real up, Real& dgate, Real& dup) const {
    const Real g = low(gate), s = sigmoid(g);
    dgate = gate <= Real(limit) ? s * (Real(1) + Real(alpha) * g * (Real(1) - s)) * (clamp(up) + Real(shift)) : Real(0);
    dup = Kokkos::abs(up) <= Real(limit) ? g * s : Real(0);
  }

 private:
  template <class Real>
  KOKKOS_FUNCTION Real low(Real x) const {
    return x < Real(limit) ? x : Real(limit);
  }
  template <class Real>
  KOKKOS_FUNCTION Real clamp(Real x) const {
    return x < -Real(limit) ? -Real(limit) : low(x);
  }
  template <class Real>
  KOKKOS_FUNCTION Real sigmoid(Real g) const {
    return Real(1) / (Real(1) + detail::exp(-Real(alpha) * g));
  }
};

/// min(SiLU(gate), limit) * u with u clamped to +-limit (Step 3.7).
struct SwiGLUClampedAfter {
  using policy = kind::activation;
  static constexpr bool gated = true;
  double limit = 7;

  template <class Real>
  KOKKOS_FUNCTION Real value(Real gate, Real up) const {
    const Real a = SiLU::value(gate);
    return (a < Real(limit) ? a : Real(limit)) * clamp(up);
  }
  template <class Real>
  KOKKOS_FUNCTION void gradient(Real gate, Real up, Real& dgate, Real& dup) const {
    const Real a = SiLU::value(gate);
    dgate = a <= Real(limit) ? SiLU::derivative(gate) * clamp(up) : Real(0);
    dup = Kokkos::abs(up) <= Real(limit) ? (a < Real(limit) ? a : Real(limit)) : Real(0);
  }

 private:
  template <class Real>
  KOKKOS_FUNCTION Real clamp(Real x) const {
    return x < -Real(limit) ? -Real(limit) : x < Real(limit) ? x : Real(limit);
  }
};

/// GELU(gate) * up.
struct GeGLU : GELU {
  static constexpr bool gated = true;
};

/// GELUTanh(gate) * up.
struct GeGLUTanh : GELUTanh {
  static constexpr bool gated = true;
};

namespace detail {

/// The hidden value of (gate, up), or of gate alone.
template <class Activation, class Real>
KOKKOS_FUNCTION Real activate(const Activation& activation, Real gate, Real up) {
  if constexpr (requires { activation.value(gate, up); }) {
    return activation.value(gate, up);
  } else if constexpr (Activation::gated) {
    return activation.value(gate) * up;
  } else {
    return activation.value(gate);
  }
}

/// The same, with its slopes.
template <class Activation, class Real>
KOKKOS_FUNCTION Real activate(const Activation& activation, Real gate, Real up, Real& dgate, Real& dup) {
  if constexpr (requires { activation.value(gate, up); }) {
    activation.gradient(gate, up, dgate, dup);
    return activation.value(gate, up);
  } else {
    const Real value = activation.value(gate), other = Activation::gated ? up : Real(1);
    dgate = activation.derivative(gate) * other;
    dup = value;
    return value * other;
  }
}

}  // namespace detail

MOE_NAMESPACE_END
