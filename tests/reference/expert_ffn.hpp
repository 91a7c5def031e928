#pragma once
/// @file
/// One expert's feed-forward network on one token, in double, with a bound on the error of the same in lower precision.
/// It judges the library and shares nothing with it.
///
/// The bounds are first-order running errors (Higham, "Accuracy and stability of numerical algorithms", section 3). A
/// sum of n products in any order, with or without fused multiplication, errs by at most (n + 1) u sum |a b|; u = 2^-24
/// for f32. An instruction that multiplies pairs of bfloat16 rounds up to twice a product: 2 (n + 1) u. Weights and
/// tokens are exact as they stand: bfloat16 numbers have been rounded before. Whole numbers are made here, from the
/// weights in f32.

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
  Real products = 1;   ///< roundings of a product
  Real hidden = 0;     ///< unit of the type that hidden values are kept in, where not f32
  bool whole = false;  ///< rows of weights, tokens and hidden values are whole numbers up to 127, with a scale
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

/// A row as whole multiples of a step, its largest magnitude / 127, and how far one may be from it that is made in f32
/// of numbers within the bound. Where a quotient comes near a half, the other may be the next whole number.
inline Bounded quantised(const Bounded& row) {
  const Real largest = row.value.cwiseAbs().maxCoeff(), step = largest / 127;
  const Real above = (row.value.cwiseAbs() + row.bound).maxCoeff() - largest;
  const Real below = largest - (row.value.cwiseAbs() - row.bound).maxCoeff();
  const Real error = std::max(above, below) / 127 + f32_unit * step;  // of the step
  Bounded result = row;
  for (Eigen::Index i = 0; i < row.value.size(); ++i) {
    if (step <= 2 * error) {  // might be zeros
      result.value(i) = 0;
      result.bound(i) = std::abs(row.value(i)) + row.bound(i) + step + error;
      continue;
    }
    const Real quotient = row.value(i) / step, nearest = std::nearbyint(quotient);
    const Real slack = (row.bound(i) + std::abs(quotient) * error) / (step - error) + 4 * f32_unit * 127;
    const bool same = std::abs(quotient - nearest) + slack < 0.5;
    result.value(i) = nearest * step;
    result.bound(i) = std::abs(nearest) * error + (same ? 0 : (1 + slack) * (step + error));
  }
  return result;
}

/// weight * x + bias with both quantised, each row of weight by itself. Sums are exact; then there is a rounding each
/// for the sum as f32, its two steps and the bias.
inline Bounded quantised_affine(const Rows& weight, const Column& bias, const Bounded& x) {
  const Bounded q = quantised(x);
  Bounded y{Column(weight.rows()), Column(weight.rows())};
  for (Eigen::Index r = 0; r < weight.rows(); ++r) {
    const Bounded w = quantised({weight.row(r).transpose(), Column::Zero(weight.cols())});
    y.value(r) = w.value.dot(q.value);
    y.bound(r) = w.value.cwiseAbs().dot(q.bound) + w.bound.dot(q.value.cwiseAbs() + q.bound);
    y.bound(r) += 3 * f32_unit * (std::abs(y.value(r)) + y.bound(r));
    if (bias.size() == 0) continue;
    y.value(r) += bias(r);
    y.bound(r) += f32_unit * (std::abs(y.value(r)) + y.bound(r));
  }
  return y;
}

/// weight * x + bias.
inline Bounded affine(const Rows& weight, const Column& bias, const Bounded& x, const Precision& precision) {
  if (precision.whole) return quantised_affine(weight, bias, x);
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
