#pragma once
/// @file
/// Activations of an FFN.
///
/// A plain activation is a struct with `static constexpr bool gated = false`, `value(x)` and `derivative(x)`; a
/// gated one (hidden = value(gate) * up; Shazeer 2020, "GLU variants improve transformer") says `gated = true`.

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
           x * Real(0.3989422804014327) * Kokkos::exp(Real(-0.5) * x * x);
  }
};

/// x Phi(x) by its tanh approximation, as in GPT-2, T5 v1.1 and Gemma (Hendrycks and Gimpel 2016).
struct GELUTanh {
  using policy = kind::activation;
  static constexpr bool gated = false;
  template <class Real>
  KOKKOS_FUNCTION static Real value(Real x) {
    return Real(0.5) * x * (Real(1) + tanh_of(x));
  }
  template <class Real>
  KOKKOS_FUNCTION static Real derivative(Real x) {
    const Real t = tanh_of(x), inner = Real(0.7978845608028654) * (Real(1) + Real(3 * 0.044715) * x * x);
    return Real(0.5) * (Real(1) + t) + Real(0.5) * x * (Real(1) - t * t) * inner;
  }

 private:
  template <class Real>
  KOKKOS_FUNCTION static Real tanh_of(Real x) {
    return Kokkos::tanh(Real(0.7978845608028654) * (x + Real(0.044715) * x * x * x));
  }
};

/// x sigmoid(x).
struct SiLU {
  using policy = kind::activation;
  static constexpr bool gated = false;
  template <class Real>
  KOKKOS_FUNCTION static Real value(Real x) {
    return x / (Real(1) + Kokkos::exp(-x));
  }
  template <class Real>
  KOKKOS_FUNCTION static Real derivative(Real x) {
    const Real s = Real(1) / (Real(1) + Kokkos::exp(-x));
    return s * (Real(1) + x * (Real(1) - s));
  }
};

/// SiLU(gate) * up: Mixtral, DeepSeek, Qwen.
struct SwiGLU : SiLU {
  static constexpr bool gated = true;
};

/// GELU(gate) * up.
struct GeGLU : GELU {
  static constexpr bool gated = true;
};

/// GELUTanh(gate) * up.
struct GeGLUTanh : GELUTanh {
  static constexpr bool gated = true;
};

MOE_NAMESPACE_END
