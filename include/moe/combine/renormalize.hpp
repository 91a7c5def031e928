#pragma once
/// @file
/// Weights after drops: a token's kept weights scaled up to the sum they had before (Renormalize::after_drops), or to
/// one (Renormalize::to_one).

#include "moe/core/context.hpp"
#include "moe/dispatch/capacity.hpp"
#include "moe/dispatch/plan.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// With S the sum of all of a token's weights, or 1, and L that of its live ones: w' = w S / L.
template <class Real, class Space>
struct RenormalizeToken {
  Assignments<Real, Space> assignments;
  DispatchPlan<Space> plan;
  bool to_one;
  Vector<Real, Space> result;  // (A)

  KOKKOS_FUNCTION void operator()(Index t) const {
    Real all = 0, live = 0;
    for (Index a = assignments.begin(t); a < assignments.end(t); ++a) {
      all += assignments.weight(a);
      if (plan.assignment_row(a) >= 0) live += assignments.weight(a);
    }
    const Real factor = live != Real(0) ? (to_one ? Real(1) : all) / live : Real(1);
    for (Index a = assignments.begin(t); a < assignments.end(t); ++a) result(a) = assignments.weight(a) * factor;
  }
};

template <class Real, class Space>
struct RenormalizeGradient {
  Assignments<Real, Space> assignments;
  DispatchPlan<Space> plan;
  bool to_one;
  Vector<Real, Space> gradient;  // (A) of w' in, of w out

  KOKKOS_FUNCTION void operator()(Index t) const {
    Real all = 0, live = 0, dot = 0;
    for (Index a = assignments.begin(t); a < assignments.end(t); ++a) {
      all += assignments.weight(a);
      if (plan.assignment_row(a) < 0) continue;
      live += assignments.weight(a);
      dot += gradient(a) * assignments.weight(a);
    }
    if (live == Real(0)) return;
    for (Index a = assignments.begin(t); a < assignments.end(t); ++a) {
      const bool kept = plan.assignment_row(a) >= 0;
      const Real sum = to_one ? Real(1) : all;
      gradient(a) =
          (kept ? gradient(a) * sum / live - dot * sum / (live * live) : Real(0)) + (to_one ? Real(0) : dot / live);
    }
  }
};

}  // namespace detail

/// result (A) = the combine weights of `assignments` after the plan's drops.
template <class Real, class Space>
void renormalize(Context<Space>& ctx, const Assignments<Real, Space>& assignments, const DispatchPlan<Space>& plan,
                 Renormalize how, const Vector<Real, Space>& result) {
  Kokkos::parallel_for("moe::renormalize", detail::Range<Space>(ctx.space, 0, plan.tokens),
                       detail::RenormalizeToken<Real, Space>{assignments, plan, how == Renormalize::to_one, result});
}

/// gradient (A): of the renormalised weights in, of the weights before out.
template <class Real, class Space>
void renormalize_backward(Context<Space>& ctx, const Assignments<Real, Space>& assignments,
                          const DispatchPlan<Space>& plan, Renormalize how, const Vector<Real, Space>& gradient) {
  Kokkos::parallel_for(
      "moe::renormalize_backward", detail::Range<Space>(ctx.space, 0, plan.tokens),
      detail::RenormalizeGradient<Real, Space>{assignments, plan, how == Renormalize::to_one, gradient});
}

MOE_NAMESPACE_END
