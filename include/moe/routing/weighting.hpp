#pragma once
/// @file
/// Weightings: the scores of a token's chosen experts become its combine weights.
///
/// A weighting is a struct with `using policy = moe::kind::weighting;` and, on the row of one token's choices,
///
///     template <class Real>
///     KOKKOS_FUNCTION void apply(const Team&, Row<Real> weights) const;  // in place
///     template <class Real>
///     KOKKOS_FUNCTION void pullback(const Team&, Row<const Real> before, Row<Real> gradient) const;
///
/// `static constexpr int order = 1` puts it behind the others.

#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// w = s / (sum s + epsilon) over a token's choices. Mixtral: epsilon 0; DeepSeek-V3's code: 1e-20.
struct NormalizeSum {
  using policy = kind::weighting;
  double epsilon = 1e-20;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> weights) const {
    const Real total = team.sum<Real>(weights.size, [&](Index i) { return weights[i]; }) + Real(epsilon);
    if (total != Real(0)) team.each(weights.size, [&](Index i) { weights[i] /= total; });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real> before, Row<Real> gradient) const {
    const Real total = team.sum<Real>(before.size, [&](Index i) { return before[i]; }) + Real(epsilon);
    if (total == Real(0)) return;
    const Real mean = team.sum<Real>(before.size, [&](Index i) { return before[i] * gradient[i]; }) / total;
    team.each(before.size, [&](Index i) { gradient[i] = (gradient[i] - mean) / total; });
  }
};

/// w = factor * s, after any normalisation (DeepSeek: routed_scaling_factor, 2.5 in V3).
struct Scale {
  using policy = kind::weighting;
  static constexpr int order = 1;
  double factor = 1;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> weights) const {
    team.each(weights.size, [&](Index i) { weights[i] *= Real(factor); });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real>, Row<Real> gradient) const {
    team.each(gradient.size, [&](Index i) { gradient[i] *= Real(factor); });
  }
};

MOE_NAMESPACE_END
