#pragma once
/// @file
/// What experts and router see of a layer's input, and where combine weights act.

#include "moe/core/parameter.hpp"
#include "moe/dispatch/plan.hpp"
#include "moe/routing/noise.hpp"

MOE_NAMESPACE_BEGIN

/// While training, the layer's input is multiplied by draws from [1 - epsilon, 1 + epsilon], for the router, the
/// experts and the branches alike: what transformers' Mixtral and Switch (in f32) do, where papers jitter the router
/// alone.
struct InputJitter {
  using policy = kind::input_map;
  double epsilon = 1e-2;
};

/// The combine weight multiplies an expert's input instead of its output (Llama 4).
struct WeightOnInput {
  using policy = kind::weight_place;
};

namespace detail {

struct NoInputMap {};
struct NoLatent {
  template <class, class>
  using Parameters = NoParameters;
  template <class, class>
  struct Saved {};
};

/// to = from * the token's jitter; also the pullback, in place.
template <class T, class Space>
struct JitterTokens {
  Matrix<const T, Space> from;
  Matrix<T, Space> to;
  RowDraws<Space> draws;
  Jitter jitter;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const RowRandom random = draws.row(t, Purpose::input);
    team.each(Index(to.extent(1)), [&](Index h) {
      to(t, h) = random.active ? T(RouterReal<T>(from(t, h)) * jitter.factor<RouterReal<T>>(random, h)) : from(t, h);
    });
  }
};

/// rows *= weight, for weights on the input.
template <class T, class Real, class Space>
struct ScaleRow {
  DispatchPlan<Space> plan;
  Vector<const Real, Space> weight;  // (R)
  Matrix<T, Space> rows;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    if (r >= plan.expert_offsets(plan.experts)) return;
    team.each(Index(rows.extent(1)), [&](Index h) { rows(r, h) = T(Real(rows(r, h)) * weight(r)); });
  }
};

/// The weight's gradient is drows . x, and drows becomes that of the unweighted row.
template <class T, class Real, class Space>
struct InputWeightGradientRow {
  DispatchPlan<Space> plan;
  Matrix<const T, Space> x;
  Vector<const Real, Space> weight;
  Matrix<T, Space> drows;
  Vector<Real, Space> dweight;
  KOKKOS_FUNCTION void operator()(Index r, const Team& team) const {
    if (r >= plan.expert_offsets(plan.experts)) return;
    const Index t = plan.row_token(r);
    Real sum = 0;  // of this lane
    team.each(Index(drows.extent(1)), [&](Index h) {
      if (t >= 0) sum += Real(drows(r, h)) * Real(x(t, h));
      drows(r, h) = T(Real(drows(r, h)) * weight(r));
    });
    sum = team.total_of(sum);
    team.single([&] { dweight(r) = sum; });
  }
};

}  // namespace detail

MOE_NAMESPACE_END
