#pragma once
/// @file
/// SparseMixer as PhiMoE uses it (Liu et al. 2024, "GRIN: gradient-informed MoE"): selection and weight are one step
/// with a gradient of its own.
///
/// Such a selection has, beside `choices` and `select`,
///
///     weigh(team, Row<const Real> scores, Row<const ExpertId> chosen, Row<Real> weights, const TokenFacts&) const
///     weigh_pullback(team, scores, chosen, Row<const Real> dweights, Row<Real> dscores, const TokenFacts&) const
///
/// and the weightings then start from what `weigh` gives.

#include "moe/routing/top_k.hpp"

MOE_NAMESPACE_BEGIN

/// Twice: among the experts left, those whose logit is within 2 * jitter of the largest, relatively, stand for choice;
/// the largest wins, or while training a draw from their softmax. Its weight is that softmax's value; while training a
/// draw that is not the largest counts a third of it three times in four, which the gradient does not see. Weights do
/// not sum to one. Wants Identity scores.
struct SparseMixer {
  using policy = kind::selection;
  static constexpr bool needs_logits = true;
  static constexpr int steps = 2;
  double jitter = 0.01;  ///< router_jitter_noise

  Index choices() const { return steps; }

  void check(const RouterShape& shape) const {
    detail::require<ConfigError>(shape.experts >= steps, "moe::SparseMixer: it chooses ", steps, " of ", shape.experts,
                                 " experts; give at least ", steps, ".");
  }

  template <class Real>
  KOKKOS_FUNCTION void select(const Team&, Row<Real> key, Row<ExpertId> chosen, const TokenFacts& token) const {
    for (int step = 0; step < steps; ++step) {
      const Stand<Real> stand{Row<const Real>{key.data, key.size}, Row<const ExpertId>{chosen.data, step}, jitter};
      ExpertId best = no_expert;
      Real best_value = 0;
      for (Index e = 0; e < key.size; ++e) {
        if (!stand.has(e)) continue;
        Real value = key[e];
        if (token.random.active) value -= Kokkos::log(exponential<Real>(token, step * key.size + e));
        if (best == no_expert || value > best_value) best = ExpertId(e), best_value = value;
      }
      chosen[step] = best;
    }
  }

  template <class Real>
  KOKKOS_FUNCTION void weigh(const Team&, Row<const Real> scores, Row<const ExpertId> chosen, Row<Real> weights,
                             const TokenFacts& token) const {
    for (int step = 0; step < steps; ++step) {
      weights[step] = 0;
      if (chosen[step] == no_expert) continue;
      const Stand<Real> stand{scores, Row<const ExpertId>{chosen.data, step}, jitter};
      weights[step] = stand.probability(chosen[step]);
      if (!token.random.active || chosen[step] == stand.best) continue;
      const bool full = token.random.uniform<Real>(steps * scores.size + step) > Real(0.75);
      weights[step] *= Real(0.3333) + (full ? Real(0.6667) : Real(0));
    }
  }

  template <class Real>
  KOKKOS_FUNCTION void weigh_pullback(const Team&, Row<const Real> scores, Row<const ExpertId> chosen,
                                      Row<const Real> dweights, Row<Real> dscores, const TokenFacts&) const {
    for (int step = 0; step < steps; ++step) {
      if (chosen[step] == no_expert) continue;
      const Stand<Real> stand{scores, Row<const ExpertId>{chosen.data, step}, jitter};
      const Real p = stand.probability(chosen[step]);
      for (Index e = 0; e < scores.size; ++e) {
        if (stand.has(e))
          dscores[e] += dweights[step] * p * ((e == chosen[step] ? Real(1) : Real(0)) - stand.probability(e));
      }
    }
  }

 private:
  /// A draw of the exponential distribution; given uniform draws are turned into it too.
  template <class Real>
  KOKKOS_FUNCTION static Real exponential(const TokenFacts& token, Index i) {
    const Real u = token.random.uniform<Real>(i);
    return -Kokkos::log(u > Real(0) ? u : Real(0x1p-25));
  }

  /// The experts that stand for choice in one step, and their softmax.
  template <class Real>
  struct Stand {
    Row<const Real> z;
    Row<const ExpertId> gone;
    double jitter;
    ExpertId best = no_expert;
    Real total = 0;

    KOKKOS_FUNCTION Stand(Row<const Real> logits, Row<const ExpertId> chosen, double epsilon)
        : z(logits), gone(chosen), jitter(epsilon) {
      for (Index e = 0; e < z.size; ++e) {
        if (!taken(e) && (best == no_expert || z[e] > z[best])) best = ExpertId(e);
      }
      for (Index e = 0; e < z.size; ++e) total += has(e) ? Kokkos::exp(z[e] - z[best]) : Real(0);
    }
    KOKKOS_FUNCTION bool taken(Index e) const {
      for (Index i = 0; i < gone.size; ++i) {
        if (gone[i] == e) return true;
      }
      return false;
    }
    KOKKOS_FUNCTION bool has(Index e) const {
      if (best == no_expert || taken(e)) return false;
      const Real size = Kokkos::abs(z[e]), scale = size > z[best] ? size : z[best];
      return !((z[best] - z[e]) / scale > Real(2 * jitter));
    }
    KOKKOS_FUNCTION Real probability(Index e) const { return Kokkos::exp(z[e] - z[best]) / total; }
  };
};

MOE_NAMESPACE_END
