#pragma once
/// @file
/// Between rows sorted by expert and heads of tokens: what mixtures of attention heads do instead of gather and
/// combine.
///
/// A slot is a choice of a token: slot a is assignment a of the plan. `share` slots in turn belong to one head, and
/// head j of all tokens is row j of an array (heads of all tokens, D). Rows are (R, D).

#include "moe/core/blocks.hpp"
#include "moe/core/context.hpp"
#include "moe/core/each_row.hpp"
#include "moe/dispatch/plan.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// to (+)= the sum of weight * row over `count` rows.
template <int count, class T, class Real>
KOKKOS_FUNCTION void add_rows(const Team& team, T* KOKKOS_RESTRICT to, const T* const (&from)[2],
                              const Real (&weight)[2], Index width, bool first) {
  const T *a = from[0], *b = from[count - 1];
  const Real u = weight[0], v = weight[count - 1];
  team.each_apart(width, [=](Index i) {
    Real sum = (first ? Real(0) : Real(to[i])) + u * Real(a[i]);
    if constexpr (count == 2) sum += v * Real(b[i]);
    to[i] = T(sum);
  });
}

/// heads(j) = sum over the head's slots of weight * their row; slots without a row add nothing.
template <class T, class Real, class Space>
struct SumSlots {
  Matrix<const T, Space> rows;       // (R, D)
  Vector<const Real, Space> weight;  // (A), or empty: 1
  Vector<Index, Space> assignment_row;
  Index share;
  T* heads;
  KOKKOS_FUNCTION void operator()(Index j, const Team& team) const {
    const Index width = rows.extent(1);
    T* to = heads + j * width;
    if (share == 1 && weight.data() == nullptr) {
      const Index r = assignment_row(j);
      copy_row<T>(team, to, r < 0 ? nullptr : rows.data() + r * width, width);
      return;
    }
    const T* from[2];
    Real w[2];
    int held = 0;
    bool first = true;
    for (Index a = j * share; a < (j + 1) * share; ++a) {
      const Index r = assignment_row(a);
      if (r < 0) continue;
      from[held] = rows.data() + r * width;
      w[held++] = weight.data() == nullptr ? Real(1) : weight(a);
      if (held < 2) continue;
      add_rows<2>(team, to, from, w, width, first);
      first = false;
      held = 0;
    }
    if (held == 1) add_rows<1>(team, to, from, w, width, first);
    if (held == 0 && first) copy_row<T>(team, to, nullptr, width);
  }
};

/// rows(r) = weight * the head of its slot; zeros in padding rows. With `values` (R, D) also the gradient of the
/// weight, dweight(a) = head . values(r).
template <class T, class Real, class Space>
struct SpreadSlots {
  const T* heads;
  Vector<const Real, Space> weight;  // (A), or empty: 1
  DispatchPlan<Space> plan;
  Index share;
  Matrix<T, Space> rows;
  Matrix<const T, Space> values;  // or empty
  Vector<Real, Space> dweight;    // (A), where there are values
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    if (r >= plan.expert_offsets(plan.experts)) return;
    const Index a = plan.row_assignment(r), width = rows.extent(1);
    T* to = rows.data() + r * width;
    const T* from = a < 0 ? nullptr : heads + a / share * width;
    if (from == nullptr || weight.data() == nullptr) return copy_row<T>(team, to, from, width);
    const Real w = weight(a);
    team.each_apart(width, [=](Index i) { to[i] = T(w * Real(from[i])); });
    if (values.data() == nullptr) return;
    const T* value = values.data() + r * width;
    const Real dot = team.sum<Real>(width, [&](Index i) { return Real(from[i]) * Real(value[i]); });
    team.single([&] { dweight(a) = dot; });
  }
};

/// The backward of y = sum over slots of weight * W_e head: from drows(r) = W_e^T dy to dheads(j), to the weights'
/// gradient drows(r) . head, and to weighted(r) = weight * head, whose product with dy is the gradient of W_e.
template <class T, class Real, class Space>
struct PullSlots {
  const T* heads;
  Matrix<const T, Space> drows;
  Vector<const Real, Space> weight;  // (A)
  Vector<Index, Space> assignment_row;
  Index share;
  T* dheads;
  Matrix<T, Space> weighted;    // (R, D)
  Vector<Real, Space> dweight;  // (A)
  KOKKOS_FUNCTION void operator()(Index j, const Team& team) const {
    const Index width = drows.extent(1);
    const T* head = heads + j * width;
    T* to = dheads + j * width;
    bool first = true;
    for (Index a = j * share; a < (j + 1) * share; ++a) {
      const Index r = assignment_row(a);
      Real dot = 0;
      if (r >= 0) {
        const T* from = drows.data() + r * width;
        T* beside = weighted.data() + r * width;
        const Real w = weight(a);
        team.each_apart(width, [=](Index i) {
          beside[i] = T(w * Real(head[i]));
          to[i] = T((first ? Real(0) : Real(to[i])) + w * Real(from[i]));
        });
        dot = team.sum<Real>(width, [&](Index i) { return Real(from[i]) * Real(head[i]); });
        first = false;
      }
      team.single([&] { dweight(a) = dot; });
    }
    if (first) copy_row<T>(team, to, nullptr, width);
  }
};

/// heads (A / share, D) overwritten.
template <class T, class Real, class Space>
void sum_slots(Context<Space>& ctx, const Matrix<T, Space>& rows, const Vector<Real, Space>& weight,
               const DispatchPlan<Space>& plan, Index share, T* heads) {
  each_row(ctx.space, "moe::sum_slots", Index(plan.assignment_row.extent(0)) / share,
           SumSlots<T, Real, Space>{rows, weight, plan.assignment_row, share, heads});
}

/// rows (R, D) overwritten in the experts' rows.
template <class T, class Real, class Space>
void spread_slots(Context<Space>& ctx, const T* heads, const Vector<Real, Space>& weight,
                  const DispatchPlan<Space>& plan, Index share, const Matrix<T, Space>& rows,
                  const Matrix<T, Space>& values = {}, const Vector<Real, Space>& dweight = {}) {
  if (values.data() != nullptr) fill(ctx.space, dweight, Real(0));
  each_row(ctx.space, "moe::spread_slots", plan.rows,
           SpreadSlots<T, Real, Space>{heads, weight, plan, share, rows, values, dweight});
}

/// dheads (A / share, D), dweight (A) and weighted (R, D) overwritten, the last in the experts' rows.
template <class T, class Real, class Space>
void pull_slots(Context<Space>& ctx, const T* heads, const Matrix<T, Space>& drows, const Vector<Real, Space>& weight,
                const DispatchPlan<Space>& plan, Index share, T* dheads, const Matrix<T, Space>& weighted,
                const Vector<Real, Space>& dweight) {
  if (plan.rows_each >= 0) fill(ctx.space, weighted, T(0));  // padding rows
  each_row(ctx.space, "moe::pull_slots", Index(plan.assignment_row.extent(0)) / share,
           PullSlots<T, Real, Space>{heads, drows, weight, plan.assignment_row, share, dheads, weighted, dweight});
}

}  // namespace detail

MOE_NAMESPACE_END
