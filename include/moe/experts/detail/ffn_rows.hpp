#pragma once
/// @file
/// ExpertFFN's elementwise kernels: one row each, for each_row and each_wide_row.

#include "moe/core/activation.hpp"
#include "moe/core/each_row.hpp"
#include "moe/dispatch/plan.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// The expert a row belongs to, or E for rows behind the last.
template <class Space>
KOKKOS_FUNCTION Index expert_of(const DispatchPlan<Space>& plan, Index row) {
  Index low = 0, high = plan.experts;  // the first e with expert_offsets(e + 1) > row
  while (low < high) {
    const Index middle = (low + high) / 2;
    if (plan.expert_offsets(middle + 1) > row) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

template <class T, class Space>
struct AddBiasRow {
  DispatchPlan<Space> plan;
  Matrix<T, Space> bias, out;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    const Index e = expert_of(plan, r);
    if (e == plan.experts) return;
    team.each(Index(out.extent(1)), [&](Index i) { out(r, i) += bias(e, i); });
  }
};

/// hidden = value(up), or value(gate) * up.
template <class Activation, class T, class Space>
struct ActivateRow {
  DispatchPlan<Space> plan;
  Matrix<T, Space> up, hidden;
  Activation activation;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    if (r >= plan.expert_offsets(plan.experts)) return;
    using Real = RouterReal<T>;
    const Index inner = hidden.extent(1);
    const T* from = up.data() + r * Index(up.extent(1));
    T* to = hidden.data() + r * inner;
    team.each(inner, [&](Index i) {
      const Real other = Activation::gated ? Real(from[i + inner]) : Real(1);
      to[i] = T(activate(activation, Real(from[i]), other));
    });
  }
};

/// From dy and dhidden = dy W_down to hidden, the weight's gradient and the gradient before the activation; scales dy.
template <class Activation, class T, class Real, class Space>
struct PullRow {
  DispatchPlan<Space> plan;
  Matrix<T, Space> up, dhidden, dy;
  Vector<Real, Space> weight, dweight;  // (R), or empty: 1
  Matrix<T, Space> down_bias;           // (E, H), or empty
  Matrix<T, Space> hidden, dup;
  Activation activation;

  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    if (r >= plan.expert_offsets(plan.experts)) return;
    const Index inner = hidden.extent(1);
    const T* from = up.data() + r * Index(up.extent(1));
    const T* dh = dhidden.data() + r * inner;
    T* h = hidden.data() + r * inner;
    T* du = dup.data() + r * Index(dup.extent(1));
    const bool weighted = weight.data() != nullptr;
    const Real w = weighted ? weight(r) : Real(1);
    team.each_apart(inner, [&](Index i) {
      const Real other = Activation::gated ? Real(from[i + inner]) : Real(1);
      Real dgate, dother;
      h[i] = T(activate(activation, Real(from[i]), other, dgate, dother));
      du[i] = T(w * Real(dh[i]) * dgate);
      if constexpr (Activation::gated) du[i + inner] = T(w * Real(dh[i]) * dother);
    });
    if (!weighted) return;
    Real dot = 0;  // of this lane; a loop of its own: a sum in order keeps the loop above from running by vectors
    team.each(inner, [&](Index i) { dot += Real(dh[i]) * Real(h[i]); });
    const Index width = dy.extent(1), e = down_bias.data() == nullptr ? 0 : expert_of(plan, r);
    team.each(width, [&](Index i) {
      if (down_bias.data() != nullptr) dot += Real(dy(r, i)) * Real(down_bias(e, i));
      dy(r, i) = T(w * Real(dy(r, i)));
    });
    dot = team.total_of(dot);
    team.single([&] { dweight(r) = dot; });
  }
};

/// gradient(e, i) += sum over e's rows; item = e * width + i.
template <class T, class Space>
struct BiasGradient {
  DispatchPlan<Space> plan;
  Matrix<T, Space> rows, gradient;
  KOKKOS_FUNCTION void operator()(Index item) const {
    const Index width = gradient.extent(1), e = item / width, i = item % width;
    RouterReal<T> sum = 0;
    for (Index r = plan.expert_offsets(e); r < plan.expert_offsets(e + 1); ++r) sum += RouterReal<T>(rows(r, i));
    gradient(e, i) = T(RouterReal<T>(gradient(e, i)) + sum);
  }
};

}  // namespace detail

MOE_NAMESPACE_END
