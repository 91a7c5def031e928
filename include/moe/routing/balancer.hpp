#pragma once
/// @file
/// Balancers: a bias on the choice, moved once an optimiser step.
///
/// A balancer is a struct with `using policy = moe::kind::balancer;`, `apply` and `step` as here. The bias is the
/// router's buffer: saved with the model, trained by no gradient. `step` may take a fourth number, tokens / E.

#include "moe/core/types.hpp"

MOE_NAMESPACE_BEGIN

/// A bias on each expert's score, for the choice alone; after each optimiser step it moves by `rate` towards equal
/// load (Wang et al. 2024, "Auxiliary-loss-free load balancing"; DeepSeek-V3, eq. 16: rate 1e-3).
struct BiasBalancer {
  using policy = kind::balancer;
  static constexpr bool takes_team = true;
  double rate = 1e-3;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<const Real> bias, Row<Real> key) const {
    team.each(key.size, [&](Index e) { key[e] += bias[e]; });
  }
  /// The bias of an expert that got `load` assignments where the mean is `mean`.
  template <class Real>
  KOKKOS_FUNCTION Real step(Real bias, double load, double mean) const {
    return load == mean ? bias : bias + Real(load < mean ? rate : -rate);
  }
};

/// The same shift for every expert, moved so that tokens get k experts on average: with a Threshold, hard tokens get
/// more experts and easy ones fewer.
struct MeanCountBalancer {
  using policy = kind::balancer;
  static constexpr bool takes_team = true;
  static constexpr bool needs_free_count = true;
  double k = 2;
  double rate = 1e-3;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<const Real> bias, Row<Real> key) const {
    team.each(key.size, [&](Index e) { key[e] += bias[e]; });
  }
  /// `even` is tokens / E: what each expert would get if every token took one.
  template <class Real>
  KOKKOS_FUNCTION Real step(Real bias, double, double mean, double even) const {
    const double target = k * even;
    return mean == target ? bias : bias + Real(mean < target ? rate : -rate);
  }
};

/// A bias for each expert, moved so that it gets k / E of the tokens: with a Threshold this is expert choice without a
/// look at later tokens, as each token compares its score with what made the cut so far.
struct QuotaBalancer {
  using policy = kind::balancer;
  static constexpr bool takes_team = true;
  static constexpr bool needs_free_count = true;
  double k = 2;
  double rate = 1e-3;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<const Real> bias, Row<Real> key) const {
    team.each(key.size, [&](Index e) { key[e] += bias[e]; });
  }
  template <class Real>
  KOKKOS_FUNCTION Real step(Real bias, double load, double, double even) const {
    const double target = k * even;
    return load == target ? bias : bias + Real(load < target ? rate : -rate);
  }
};

MOE_NAMESPACE_END
