#pragma once
/// @file
/// Rows back into token order: the weighted sum, and its gradients. Combine gathers in choice order, so a token's
/// sum does not depend on threads or on the batch around it.

#include "moe/core/blocks.hpp"
#include "moe/core/context.hpp"
#include "moe/core/each_row.hpp"
#include "moe/dispatch/plan.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// For hosts. Adds up four rows at a time: their memory then delivers several streams at once, and y stays in a cache.
template <class T, class Real, class Space>
struct CombineToken {
  Matrix<const T, Space> rows;       // (R, H)
  Vector<const Real, Space> weight;  // (A), or empty: 1
  DispatchPlan<Space> plan;
  Matrix<T, Space> y;  // (T, H)

  /// y(t) (+)= the rows i to i + count - 1 of the token's list, in their order.
  template <int count>
  KOKKOS_FUNCTION void add(Index t, Index i, bool first) const {
    using Sum = RouterReal<T>;
    const Index hidden = y.extent(1);
    Sum w[count];
    const T* from[count];
    for (int j = 0; j < count; ++j) {
      const Index r = plan.token_rows(i + j);
      w[j] = weight.data() == nullptr ? Sum(1) : Sum(weight(plan.row_assignment(r)));
      from[j] = rows.data() + r * hidden;
    }
    T* KOKKOS_RESTRICT to = y.data() + t * hidden;
    for (Index h = 0; h < hidden; ++h) {
      Sum sum = first ? Sum(0) : Sum(to[h]);
      for (int j = 0; j < count; ++j) sum += w[j] * Sum(from[j][h]);
      to[h] = T(sum);
    }
  }

  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index begin = plan.token_offsets(t), end = plan.token_offsets(t + 1);
    Index i = begin;
    for (; i + 4 <= end; i += 4) add<4>(t, i, i == begin);
    for (; i + 2 <= end; i += 2) add<2>(t, i, i == begin);
    if (i < end) add<1>(t, i, i == begin);
    if (begin == end) {
      for (Index h = 0; h < Index(y.extent(1)); ++h) y(t, h) = T(0);
    }
  }
};

/// The same for devices: every lane adds up its own columns, all rows in their order.
template <class T, class Real, class Space>
struct CombineByTeam {
  Matrix<const T, Space> rows;       // (R, H)
  Vector<const Real, Space> weight;  // (A), or empty: 1
  DispatchPlan<Space> plan;
  Matrix<T, Space> y;  // (T, H)
  using Sum = RouterReal<T>;

  KOKKOS_FUNCTION Sum weight_of(Index r) const {
    return weight.data() == nullptr ? Sum(1) : Sum(weight(plan.row_assignment(r)));
  }

  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Index begin = plan.token_offsets(t), end = plan.token_offsets(t + 1), hidden = y.extent(1);
    T* to = y.data() + t * hidden;
    if (in_blocks(rows.data(), hidden) && in_blocks(y.data(), hidden)) {
      constexpr Index size = Pack<T>::size;
      team.each(hidden / size, [&](Index block) {
        Sum sums[size] = {};
        for (Index i = begin; i < end; ++i) {
          const Index r = plan.token_rows(i);
          const Pack<T> pack = load_block(rows.data() + r * hidden, block);
          const Sum w = weight_of(r);
          for (Index j = 0; j < size; ++j) sums[j] += w * Sum(pack.values[j]);
        }
        Pack<T> result;
        for (Index j = 0; j < size; ++j) result.values[j] = T(sums[j]);
        store_block(to, block, result);
      });
    } else {
      team.each(hidden, [&](Index h) {
        Sum sum = 0;
        for (Index i = begin; i < end; ++i) {
          const Index r = plan.token_rows(i);
          sum += weight_of(r) * Sum(rows(r, h));
        }
        to[h] = T(sum);
      });
    }
  }
};

/// y(t) = the weighted sum of t's rows; an empty weight is 1.
template <class T, class Real, class Space>
void sum_rows(Context<Space>& ctx, const char* name, const Matrix<const T, Space>& rows,
              const Vector<const Real, Space>& weight, const DispatchPlan<Space>& plan, const Matrix<T, Space>& y) {
  if constexpr (device_path<Space>) {
    each_wide_row(ctx.space, name, plan.tokens, Index(y.extent(1)),
                  CombineByTeam<T, Real, Space>{rows, weight, plan, y});
  } else {
    Kokkos::parallel_for(name, detail::Range<Space>(ctx.space, 0, plan.tokens),
                         CombineToken<T, Real, Space>{rows, weight, plan, y});
  }
}

template <class Real, class Space>
struct RowWeight {
  Vector<const Real, Space> weight;  // (A)
  DispatchPlan<Space> plan;
  Vector<Real, Space> row_weight;  // (R)
  KOKKOS_FUNCTION void operator()(Index r) const {
    const Index a = plan.row_assignment(r);
    row_weight(r) = a < 0 ? Real(0) : weight(a);
  }
};

template <class Real, class Space>
struct AssignmentGradient {
  Vector<const Real, Space> drow_weight;  // (R)
  DispatchPlan<Space> plan;
  Vector<Real, Space> dweight;  // (A)
  KOKKOS_FUNCTION void operator()(Index a) const {
    const Index r = plan.assignment_row(a);
    dweight(a) = r < 0 ? Real(0) : drow_weight(r);
  }
};

/// For experts without a fused backward: the weight's gradient is dy . out, and dy is scaled in place.
template <class T, class Real, class Space>
struct WeightedGradientRow {
  Matrix<const T, Space> out;  // (R, H) what the experts gave
  Matrix<T, Space> dout;       // (R, H) dy in; weight * dy out
  Vector<const Real, Space> row_weight;
  Vector<Real, Space> drow_weight;
  DispatchPlan<Space> plan;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    if (r >= plan.expert_offsets(plan.experts)) return;
    Real sum = 0;  // of this lane
    team.each(Index(dout.extent(1)), [&](Index h) {
      if (plan.row_token(r) >= 0) sum += Real(dout(r, h)) * Real(out(r, h));
      dout(r, h) = T(Real(dout(r, h)) * row_weight(r));
    });
    sum = team.total_of(sum);
    team.single([&] { drow_weight(r) = sum; });
  }
};

}  // namespace detail

/// y(t) = sum over t's live rows of weight * rows(r). rows (R, H), weight (A), y (T, H) overwritten; dropped and
/// masked tokens get zeros.
template <class T, class Real, class Space>
void combine(Context<Space>& ctx, const Matrix<const T, Space>& rows, const Vector<const Real, Space>& weight,
             const DispatchPlan<Space>& plan, const Matrix<T, Space>& y) {
  detail::sum_rows(ctx, "moe::combine", rows, weight, plan, y);
}

/// The backward of gather: dx(t) = sum of its rows' gradients. drows (R, H), dx (T, H) overwritten.
template <class T, class Space>
void scatter_add(Context<Space>& ctx, const Matrix<const T, Space>& drows, const DispatchPlan<Space>& plan,
                 const Matrix<T, Space>& dx) {
  detail::sum_rows(ctx, "moe::scatter_add", drows, Vector<const RouterReal<T>, Space>{}, plan, dx);
}

MOE_NAMESPACE_END
