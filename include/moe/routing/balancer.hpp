#pragma once
/// @file
/// Balancers: a bias on the choice, moved once an optimiser step.
///
/// A balancer is a struct with `using policy = moe::kind::balancer;` and
///
///     template <class Real>
///     KOKKOS_FUNCTION void step(Row<Real> bias, Row<const Index> load, double tokens) const
///
/// which moves the bias of all experts by the assignments they got in the step, before drops, of `tokens` tokens. The
/// router adds the bias to the keys that the selection compares. It is the router's buffer: saved with the model,
/// trained by no gradient.

#include <limits>

#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// How far a bias moves where an expert's load is off by `error`, what it should get less what it got: by rate *
/// sign(error), by rate * error / what it should get, or by rate * error / the root mean square of all errors.
enum class BiasRule { sign, proportional, normalized };

namespace detail {

/// The move of a bias; `aim` is what an expert should get, `square` the mean square of the errors.
KOKKOS_INLINE_FUNCTION double bias_move(BiasRule rule, double rate, double error, double aim, double square) {
  if (error == 0) return 0;
  if (rule == BiasRule::proportional) return aim > 0 ? rate * error / aim : 0.0;
  if (rule == BiasRule::normalized) return rate * error / Kokkos::sqrt(square);
  return error > 0 ? rate : -rate;
}

/// Moves the biases of experts that should get `aim` assignments each.
template <class Real>
KOKKOS_FUNCTION void move_biases(BiasRule rule, double rate, double aim, Row<const Index> load, Row<Real> bias) {
  double square = 0;
  for (Index e = 0; e < load.size; ++e) square += (aim - double(load[e])) * (aim - double(load[e]));
  square /= double(load.size);
  for (Index e = 0; e < load.size; ++e) bias[e] += Real(bias_move(rule, rate, aim - double(load[e]), aim, square));
}

}  // namespace detail

/// A bias on each expert's score, for the choice alone; after each optimiser step it moves towards equal load: by
/// `rate` (Wang et al. 2024, "Auxiliary-loss-free load balancing"; DeepSeek-V3, eq. 16: 1e-3), or in proportion to the
/// error (Wang et al., section 4.3), or that over its root mean square.
struct BiasBalancer {
  using policy = kind::balancer;
  double rate = 1e-3;
  BiasRule rule = BiasRule::sign;
  Index groups = 1;                                        ///< loads are made equal within each, of neighbours
  double limit = std::numeric_limits<double>::infinity();  ///< biases stay within [-limit, limit]
  double decay = 0;                                        ///< they shrink by this part before each move

  template <class Real>
  KOKKOS_FUNCTION void step(Row<Real> bias, Row<const Index> load, double) const {
    const Index size = load.size / groups;
    for (Index first = 0; first < size * groups; first += size) {
      const Row<const Index> own{load.data + first, size};
      const Row<Real> moved{bias.data + first, size};
      double mean = 0;
      for (Index e = 0; e < size; ++e) mean += double(own[e]);
      mean /= double(size);
      for (Index e = 0; e < size; ++e) moved[e] *= Real(1 - decay);
      detail::move_biases(rule, rate, mean, own, moved);
      for (Index e = 0; e < size; ++e)
        moved[e] = moved[e] > Real(limit) ? Real(limit) : moved[e] < Real(-limit) ? Real(-limit) : moved[e];
    }
  }
  /// Throws ConfigError for groups that do not divide the experts, and numbers that make no sense.
  void check(const RouterShape& shape) const {
    detail::require<ConfigError>(groups > 0 && shape.experts % groups == 0, "moe::BiasBalancer: ", shape.experts,
                                 " experts do not divide into ", groups, " groups.");
    detail::require<ConfigError>(limit >= 0 && decay >= 0 && decay <= 1, "moe::BiasBalancer: limit ", limit, ", decay ",
                                 decay, "; the limit must not be negative, and decay lies in [0, 1].");
  }
};

/// The same shift for every expert, moved so that tokens get k experts on average: with a Threshold, hard tokens get
/// more experts and easy ones fewer. Normalised errors of one shift are their sign.
struct MeanCountBalancer {
  using policy = kind::balancer;
  static constexpr bool needs_free_count = true;
  double k = 2;
  double rate = 1e-3;
  BiasRule rule = BiasRule::sign;

  template <class Real>
  KOKKOS_FUNCTION void step(Row<Real> bias, Row<const Index> load, double tokens) const {
    double error = k * tokens;
    for (Index e = 0; e < load.size; ++e) error -= double(load[e]);
    const double move = detail::bias_move(rule, rate, error, k * tokens, error * error);
    for (Index e = 0; e < load.size; ++e) bias[e] += Real(move);
  }
};

/// A bias for each expert, moved so that it gets k / E of the tokens: with a Threshold this is expert choice without a
/// look at later tokens, as each token compares its score with what made the cut so far. By BiasRule::proportional it
/// follows the quantile of each expert's scores by stochastic gradient (Robbins and Monro 1951); QuantileBias takes the
/// quantile of a batch.
struct QuotaBalancer {
  using policy = kind::balancer;
  static constexpr bool needs_free_count = true;
  double k = 2;
  double rate = 1e-3;
  BiasRule rule = BiasRule::sign;

  template <class Real>
  KOKKOS_FUNCTION void step(Row<Real> bias, Row<const Index> load, double tokens) const {
    detail::move_biases(rule, rate, k * tokens / double(load.size), load, bias);
  }
};

MOE_NAMESPACE_END
