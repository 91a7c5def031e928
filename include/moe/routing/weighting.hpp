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
/// Both may take the experts' ids too, `Row<const ExpertId> chosen`, behind the weights: id -1 is a choice that was not
/// made, its weight 0. A learned one also has a `name`, `size(shape)` and `initial`, and takes its parameter:
///
///     apply(team, weights, chosen, Row<const Real> parameter)
///     pullback(team, before, chosen, Row<const Real> parameter, gradient, Row<Real> dparameter)  // adds to dparameter
///
/// `static constexpr int order = 1` puts a weighting behind the others. `takes_team`: see scoring.hpp; the pullback of
/// a learned one always gets one thread.

#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// w = s / (sum s + epsilon) over a token's choices. Mixtral: epsilon 0; DeepSeek-V3's code: 1e-20; LFM2: 1e-6.
struct NormalizeSum {
  using policy = kind::weighting;
  static constexpr bool takes_team = true;
  static constexpr bool divides_by_sum = true;
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

/// w = s / (sum s + epsilon), where the gradient takes the sum for a constant (Zhang et al. 2022, "Mixture of attention
/// heads": Detach).
struct NormalizeDetachedSum {
  using policy = kind::weighting;
  static constexpr bool takes_team = true;
  static constexpr bool divides_by_sum = true;
  double epsilon = 1e-20;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> weights) const {
    NormalizeSum{epsilon}.apply(team, weights);
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real> before, Row<Real> gradient) const {
    const Real total = team.sum<Real>(before.size, [&](Index i) { return before[i]; }) + Real(epsilon);
    if (total != Real(0)) team.each(before.size, [&](Index i) { gradient[i] /= total; });
  }
};

/// w = s / max(sum s, minimum) (ERNIE 4.5: 1e-12).
struct NormalizeMax {
  using policy = kind::weighting;
  static constexpr bool takes_team = true;
  static constexpr bool divides_by_sum = true;
  double minimum = 1e-12;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> weights) const {
    const Real total = sum(team, Row<const Real>{weights.data, weights.size});
    const Real divisor = total > Real(minimum) ? total : Real(minimum);
    team.each(weights.size, [&](Index i) { weights[i] /= divisor; });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real> before, Row<Real> gradient) const {
    const Real total = sum(team, before);
    if (total > Real(minimum)) {
      NormalizeSum{0}.pullback(team, before, gradient);
    } else {
      team.each(gradient.size, [&](Index i) { gradient[i] /= Real(minimum); });
    }
  }

 private:
  template <class Real>
  KOKKOS_FUNCTION static Real sum(const Team& team, Row<const Real> row) {
    return team.sum<Real>(row.size, [&](Index i) { return row[i]; });
  }
};

/// w = s / (sum |s|^p)^(1/p) (DBRX: moe_normalize_expert_weights).
struct NormalizeLp {
  using policy = kind::weighting;
  static constexpr bool takes_team = true;
  double p = 1;

  void check(const RouterShape&) const {
    detail::require<ConfigError>(p >= 1, "moe::NormalizeLp: p is ", p, "; it must be at least 1.");
  }

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> weights) const {
    const Real length = norm(team, Row<const Real>{weights.data, weights.size});
    if (length != Real(0)) team.each(weights.size, [&](Index i) { weights[i] /= length; });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real> before, Row<Real> gradient) const {
    const Real length = norm(team, before);
    if (length == Real(0)) return;
    const Real dot = team.sum<Real>(before.size, [&](Index i) { return before[i] * gradient[i]; }) / length;
    team.each(before.size, [&](Index i) {
      const Real slope = Kokkos::pow(Kokkos::abs(before[i]) / length, Real(p - 1));
      gradient[i] = (gradient[i] - dot * (before[i] < Real(0) ? -slope : slope)) / length;
    });
  }

 private:
  template <class Real>
  KOKKOS_FUNCTION Real norm(const Team& team, Row<const Real> row) const {
    const Real total = team.sum<Real>(row.size, [&](Index i) { return Kokkos::pow(Kokkos::abs(row[i]), Real(p)); });
    return Kokkos::pow(total, Real(1 / p));
  }
};

/// w = softmax over the chosen (gpt-oss, Granite, Aria, JetMoE, and Shazeer et al. 2017): with Identity scores, of the
/// chosen logits.
struct SoftmaxOfChosen {
  using policy = kind::weighting;
  static constexpr bool takes_team = true;
  static constexpr bool needs_logits = true;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> weights, Row<const ExpertId> chosen) const {
    const Real nothing = -Kokkos::Experimental::infinity_v<Real>;
    const Real top = team.max<Real>(weights.size, [&](Index i) { return chosen[i] < 0 ? nothing : weights[i]; });
    if (top == nothing) return;
    team.each(weights.size, [&](Index i) { weights[i] = chosen[i] < 0 ? Real(0) : Kokkos::exp(weights[i] - top); });
    const Real total = team.sum<Real>(weights.size, [&](Index i) { return weights[i]; });
    team.each(weights.size, [&](Index i) { weights[i] /= total; });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real> before, Row<const ExpertId> chosen,
                                Row<Real> gradient) const {
    const Real nothing = -Kokkos::Experimental::infinity_v<Real>;
    const Real top = team.max<Real>(before.size, [&](Index i) { return chosen[i] < 0 ? nothing : before[i]; });
    if (top == nothing) return;
    const auto part = [&](Index i) { return chosen[i] < 0 ? Real(0) : Kokkos::exp(before[i] - top); };
    const Real total = team.sum<Real>(before.size, part);
    const Real mean = team.sum<Real>(before.size, [&](Index i) { return part(i) * gradient[i]; }) / total;
    team.each(before.size, [&](Index i) { gradient[i] = part(i) / total * (gradient[i] - mean); });
  }
};

/// w = sigmoid of each chosen (Llama 4, BASE, Cohere 2): with Identity scores, of the chosen logits.
struct SigmoidOfChosen {
  using policy = kind::weighting;
  static constexpr bool takes_team = true;
  static constexpr bool needs_logits = true;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> weights, Row<const ExpertId> chosen) const {
    team.each(weights.size, [&](Index i) { weights[i] = chosen[i] < 0 ? Real(0) : sigmoid(weights[i]); });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real> before, Row<const ExpertId> chosen,
                                Row<Real> gradient) const {
    team.each(before.size, [&](Index i) {
      const Real s = sigmoid(before[i]);
      gradient[i] = chosen[i] < 0 ? Real(0) : gradient[i] * s * (Real(1) - s);
    });
  }

 private:
  template <class Real>
  KOKKOS_FUNCTION static Real sigmoid(Real z) {
    return Real(1) / (Real(1) + Kokkos::exp(-z));
  }
};

/// w = value, whatever the score (hash layers and task tables: 1).
struct ConstantWeight {
  using policy = kind::weighting;
  static constexpr bool takes_team = true;
  double value = 1;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> weights, Row<const ExpertId> chosen) const {
    team.each(weights.size, [&](Index i) { weights[i] = chosen[i] < 0 ? Real(0) : Real(value); });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real>, Row<const ExpertId>, Row<Real> gradient) const {
    team.each(gradient.size, [&](Index i) { gradient[i] = 0; });
  }
};

/// w = factor * s, after any normalisation (DeepSeek: routed_scaling_factor, 2.5 in V3).
struct Scale {
  using policy = kind::weighting;
  static constexpr bool takes_team = true;
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

/// w = g * s with one trained g, 1 at the start (Inkling: global_scale).
struct LearnedScale {
  using policy = kind::weighting;
  static constexpr bool takes_team = true;
  static constexpr int order = 1;
  static constexpr const char* name = "scale";
  double initial = 1;

  Index size(const RouterShape&) const { return 1; }

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> weights, Row<const ExpertId>,
                             Row<const Real> parameter) const {
    team.each(weights.size, [&](Index i) { weights[i] *= parameter[0]; });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real> before, Row<const ExpertId>,
                                Row<const Real> parameter, Row<Real> gradient, Row<Real> dparameter) const {
    dparameter[0] += team.sum<Real>(before.size, [&](Index i) { return before[i] * gradient[i]; });
    team.each(gradient.size, [&](Index i) { gradient[i] *= parameter[0]; });
  }
};

/// w = g_e * s with a trained g for each expert, 1 at the start (Gemma 4: per_expert_scale).
struct PerExpertScale {
  using policy = kind::weighting;
  static constexpr bool takes_team = true;
  static constexpr int order = 1;
  static constexpr const char* name = "per_expert_scale";
  double initial = 1;

  Index size(const RouterShape& shape) const { return shape.experts; }

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> weights, Row<const ExpertId> chosen,
                             Row<const Real> parameter) const {
    team.each(weights.size, [&](Index i) {
      if (chosen[i] >= 0) weights[i] *= parameter[chosen[i]];
    });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real> before, Row<const ExpertId> chosen,
                                Row<const Real> parameter, Row<Real> gradient, Row<Real> dparameter) const {
    team.each(gradient.size, [&](Index i) {
      if (chosen[i] < 0) return;
      dparameter[chosen[i]] += before[i] * gradient[i];
      gradient[i] *= parameter[chosen[i]];
    });
  }
};

MOE_NAMESPACE_END
