#pragma once
/// @file
/// Scorings: a row of logits becomes a row of scores.
///
/// A scoring is a struct at namespace scope with `using policy = moe::kind::scoring;` and
///
///     template <class Real>
///     KOKKOS_FUNCTION void apply(const Team&, Row<Real> row) const;                                  // in place
///     template <class Real>
///     KOKKOS_FUNCTION void pullback(const Team&, Row<const Real> scores, Row<Real> gradient) const;  // in place
///
/// One that steps through rows by the team's `each`, `sum`, `max` and `single` alone adds
///
///     static constexpr bool takes_team = true;
///
/// and devices may give it a warp a row. Without it, or with plain loops, it gets one thread; see core/team.hpp. The
/// same holds for row maps, choice keys, balancers, selections, weightings and skipping. A policy that inherits from
/// one of ours inherits this word, too: take it back where the new members do not keep it.

#include "moe/core/exp.hpp"
#include "moe/core/lanes.hpp"

MOE_NAMESPACE_BEGIN

/// s = exp(z) / sum exp(z), over all experts.
struct Softmax {
  using policy = kind::scoring;
  static constexpr bool takes_team = true;
  static constexpr bool probabilities = true;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> row) const {
    const Real top = detail::row_max(team, row);
    team.each(row.size, [&](Index e) { row[e] = detail::exp(row[e] - top); });
    const Real total = detail::row_sum(team, row);
    team.each(row.size, [&](Index e) { row[e] /= total; });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real> scores, Row<Real> gradient) const {
    const Real mean = team.sum<Real>(scores.size, [&](Index e) { return scores[e] * gradient[e]; });
    team.each(scores.size, [&](Index e) { gradient[e] = scores[e] * (gradient[e] - mean); });
  }
};

/// s = 1 / (1 + exp(-z)), each expert for itself (DeepSeek-V3, eq. 15).
struct Sigmoid {
  using policy = kind::scoring;
  static constexpr bool takes_team = true;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> row) const {
    team.each(row.size, [&](Index e) { row[e] = Real(1) / (Real(1) + detail::exp(-row[e])); });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real> scores, Row<Real> gradient) const {
    team.each(scores.size, [&](Index e) { gradient[e] *= scores[e] * (Real(1) - scores[e]); });
  }
};

/// s = sqrt(log(1 + exp(z))) (DeepSeek-V4).
struct SqrtSoftplus {
  using policy = kind::scoring;
  static constexpr bool takes_team = true;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> row) const {
    team.each(row.size, [&](Index e) {
      const Real z = row[e];
      row[e] = Kokkos::sqrt(z > Real(0) ? z + Kokkos::log1p(Kokkos::exp(-z)) : Kokkos::log1p(Kokkos::exp(z)));
    });
  }

  /// sigmoid(z) = 1 - exp(-s^2), so the score alone gives the slope.
  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real> scores, Row<Real> gradient) const {
    team.each(scores.size, [&](Index e) {
      const Real s = scores[e];
      gradient[e] = s > Real(0) ? gradient[e] * -Kokkos::expm1(-s * s) / (Real(2) * s) : Real(0);
    });
  }
};

/// s = z: for systems whose weights come from the chosen logits (SoftmaxOfChosen, SigmoidOfChosen, SparseMixer).
struct Identity {
  using policy = kind::scoring;
  static constexpr bool takes_team = true;
  static constexpr bool logits = true;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team&, Row<Real>) const {}
  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team&, Row<const Real>, Row<Real>) const {}
};

MOE_NAMESPACE_END
