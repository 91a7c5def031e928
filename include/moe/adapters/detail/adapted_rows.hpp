#pragma once
/// @file
/// AdaptedFFN's elementwise kernels, and what it asks of its adapters.

#include "moe/adapters/low_rank_adapters.hpp"
#include "moe/core/activation.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

template <class Form>
inline constexpr bool works_on_rows = requires(const Form& form) {
  requires std::is_same_v<typename Form::template Parameters<float, ProbeSpace>, LowRank<float, ProbeSpace>>;
  form.dropout;
  Form::scaling(1.0, LowRankShape{});
};

/// Says what is wrong with the adapters of a feed-forward network.
template <class Form>
struct CheckRowAdapters {
  static_assert(works_on_rows<Form>,
                "moe::AdaptedFFN: its adapters are LowRankAdapters<...>, which change rows of one expert; this form "
                "changes tokens. Use AdaptedLinear for each projection.");
};

/// up(r) = the frozen projections of the row's token plus its adapters'; hidden = value(gate) * up.
template <class Activation, class T, class Space>
struct ActivateAdapted {
  DispatchPlan<Space> plan;
  Matrix<const T, Space> gate, frozen_up;     // (T, I); the first where gated
  Matrix<const T, Space> gate_rows, up_rows;  // (R, I)
  Matrix<T, Space> up, hidden;                // (R, 2I) or (R, I), (R, I)
  Activation activation;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    using Real = RouterReal<T>;
    const Index t = plan.row_token(r), inner = hidden.extent(1);
    team.each(inner, [&](Index i) {
      Real first = t < 0 ? Real(0) : Real(frozen_up(t, i)) + Real(up_rows(r, i)), other = 1;
      if constexpr (Activation::gated) {
        other = first;
        first = t < 0 ? Real(0) : Real(gate(t, i)) + Real(gate_rows(r, i));
        up(r, i + inner) = T(other);
        other = Real(up(r, i + inner));
      }
      up(r, i) = T(first);
      hidden(r, i) = T(activate(activation, Real(up(r, i)), other));
    });
  }
};

/// From the gradients of the weighted sum (dsum = W_down^T dy) and of what the down adapters read (dhidden) to those of
/// gate and up; adds the sum's part of the weights' gradient.
template <class Activation, class T, class Real, class Space>
struct PullAdapted {
  DispatchPlan<Space> plan;
  Vector<const Real, Space> weight;  // (A)
  Matrix<const T, Space> up;         // (R, 2I) or (R, I)
  Matrix<const T, Space> dhidden;    // (R, I)
  Matrix<const T, Space> dsum;       // (T, I)
  Matrix<T, Space> dgate, dup;       // (R, I); the first where gated
  Vector<Real, Space> dweight;       // (A)
  Activation activation;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    const Index t = plan.row_token(r), a = plan.row_assignment(r), inner = dup.extent(1);
    const bool live = t >= 0;
    const Real w = live ? weight(a) : Real(0);
    Real dot = 0;  // of this lane
    team.each(inner, [&](Index i) {
      const Real other = Activation::gated ? Real(up(r, i + inner)) : Real(1);
      const Real from = live ? Real(dsum(t, i)) : Real(0);
      Real dfirst, dother;
      const Real h = activate(activation, Real(up(r, i)), other, dfirst, dother);
      const Real slope = live ? w * from + Real(dhidden(r, i)) : Real(0);
      dot += from * h;
      if constexpr (Activation::gated) {
        dgate(r, i) = live ? T(slope * dfirst) : T(0);
        dup(r, i) = live ? T(slope * dother) : T(0);
      } else {
        dup(r, i) = live ? T(slope * dfirst) : T(0);
      }
    });
    dot = team.total_of(dot);
    if (live) team.single([&] { dweight(a) += dot; });
  }
};

}  // namespace detail

MOE_NAMESPACE_END
