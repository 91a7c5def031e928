#pragma once
/// @file
/// Rotary position embedding (Su et al. 2021).

#include "moe/core/each_row.hpp"
#include "moe/kernels/attention_plan.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// (T, width): cosines of each token's angles, then their sines. Angle i is position * base^(-2 i / width). Positions
/// are the batch's, or else the place in the sequence; in a cache, padding not counted.
template <class Real, class Space>
struct RotaryAngles {
  Vector<const Index, Space> positions;  // (T) or empty
  Vector<Index, Space> visible;
  double log_base;
  Matrix<Real, Space> table;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Index half = Index(table.extent(1)) / 2;
    const double position = double(positions.data() != nullptr ? positions(t) : visible(t) - 1);
    team.each(half, [&](Index i) {
      const double angle = position * Kokkos::exp(-double(i) / double(half) * log_base);
      table(t, i) = Real(Kokkos::cos(angle));
      table(t, half + i) = Real(Kokkos::sin(angle));
    });
  }
};

/// Turns every head of token t in place: the pair (i, i + width / 2) by its angle; back for gradients.
template <class T, class Real, class Space>
struct Rotate {
  Matrix<Real, Space> table;
  T* data;
  Index stride, heads;
  bool back;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Index width = table.extent(1), half = width / 2;
    const Real *c = table.data() + t * width, *s = c + half;
    const Real sign = back ? Real(-1) : Real(1);
    for (Index h = 0; h < heads; ++h) {
      T* head = data + t * stride + h * width;
      team.each_apart(half, [=](Index i) {
        const Real a = Real(head[i]), b = Real(head[i + half]);
        head[i] = T(a * c[i] - sign * b * s[i]);
        head[i + half] = T(sign * a * s[i] + b * c[i]);
      });
    }
  }
};

template <class Real, class T, class Space>
void rotary_angles(Context<Space>& ctx, const Batch<T, Space>& batch, const AttentionPlan<Space>& plan, double base,
                   const Matrix<Real, Space>& table) {
  each_row(ctx.space, "moe::rotary", Index(table.extent(0)),
           RotaryAngles<Real, Space>{batch.positions, plan.visible, Kokkos::log(base), table});
}

/// heads of width table.extent(1) in the rows of `data`; an empty table turns nothing.
template <class Real, class T, class Space>
void rotate(Context<Space>& ctx, const Matrix<Real, Space>& table, T* data, Index stride, Index heads, bool back) {
  if (table.data() == nullptr) return;
  each_row(ctx.space, "moe::rotary", Index(table.extent(0)), Rotate<T, Real, Space>{table, data, stride, heads, back});
}

}  // namespace detail

MOE_NAMESPACE_END
