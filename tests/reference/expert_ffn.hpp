#pragma once
/// @file
/// One expert's feed-forward network on one token, in double, with a bound on the error of the same in lower precision.
/// It judges the library and shares nothing with it.
///
/// The bounds are first-order running errors (Higham, "Accuracy and stability of numerical algorithms", section 3). A
/// sum of n products in any order, with or without fused multiplication, errs by at most (n + 1) u sum |a b|; u = 2^-24
/// for f32. An instruction that multiplies pairs of bfloat16 rounds up to twice a product: 2 (n + 1) u. Weights and
/// tokens are exact as they stand: bfloat16 numbers have been rounded before.

#include <Eigen/Dense>
#include <cmath>
#include <functional>

namespace reference {

using Real = double;
using Rows = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Column = Eigen::Matrix<Real, Eigen::Dynamic, 1>;

inline constexpr Real f32_unit = 0x1p-24, bf16_unit = 0x1p-8;

/// An activation offset + phi(gate) * factor(up), factor = 1 where not gated, with |phi(g)| <= |g|, |phi'| <= slope,
/// |factor(u)| <= |u| + shift, |factor'| <= 1. In f32 it errs by at most 12 u (|offset| + |gate| (|up| + shift)):
/// exponentials to 2 units in the last place (4 u), and half a unit for each further operation.
struct Curve {
  bool gated = false;
  Real slope = 1, shift = 0, offset = 0;
  std::function<Real(Real, Real)> value;
};

/// How the numbers in between are rounded.
struct Precision {
  Real products = 1;  ///< roundings of a product
  Real hidden = 0;    ///< unit of the type that hidden values are kept in, where not f32
};

/// Weights and biases of one expert: gate and up, or up alone.
struct Expert {
  Rows gate, up, down;
  Column gate_bias, up_bias, down_bias;  ///< or empty
};

/// A result, and how far another may be from it.
struct Bounded {
  Column value, bound;
};

/// weight * x + bias.
inline Bounded affine(const Rows& weight, const Column& bias, const Bounded& x, const Precision& precision) {
  const Real n = Real(weight.cols()) + (bias.size() > 0 ? 1 : 0);
  Bounded y{weight * x.value, weight.cwiseAbs() * x.bound};
  Column sum = weight.cwiseAbs() * (x.value.cwiseAbs() + x.bound);
  if (bias.size() > 0) {
    y.value += bias;
    sum += bias.cwiseAbs();
  }
  y.bound += precision.products * (n + 1) * f32_unit * sum;
  return y;
}

inline Bounded expert_ffn(const Expert& expert, const Curve& curve, const Bounded& x, const Precision& precision) {
  const Bounded g =
      affine(curve.gated ? expert.gate : expert.up, curve.gated ? expert.gate_bias : expert.up_bias, x, precision);
  Bounded u{Column::Ones(g.value.size()), Column::Zero(g.value.size())};
  if (curve.gated) u = affine(expert.up, expert.up_bias, x, precision);
  Bounded h = g;
  for (Eigen::Index i = 0; i < g.value.size(); ++i) {
    const Real gate = std::abs(g.value(i)) + g.bound(i);
    const Real factor = std::abs(u.value(i)) + u.bound(i) + curve.shift;
    h.value(i) = curve.value(g.value(i), u.value(i));
    h.bound(i) = curve.slope * g.bound(i) * factor + gate * u.bound(i);
    h.bound(i) += 12 * f32_unit * (std::abs(curve.offset) + gate * factor);
    h.bound(i) += precision.hidden * (std::abs(h.value(i)) + h.bound(i));
  }
  return affine(expert.down, expert.down_bias, h, precision);
}

}  // namespace reference
