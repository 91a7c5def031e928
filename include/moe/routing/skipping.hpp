#pragma once
/// @file
/// Skipping: choices taken away by their weights, before capacity. They are no longer dispatched and take no place in a
/// queue; balancers and losses still count them, and the other weights stay as they are.
///
/// A skipping policy is a struct with `using policy = moe::kind::skipping;` and, on the row of one token's choices,
///
///     template <class Real>
///     KOKKOS_FUNCTION void keep(const Team&, Row<const Real> weights, Row<std::uint8_t> live, const TokenFacts&)
///     const;
///
/// which sets entries of `live` to 0.

#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// While training, choice i > 0 is kept with probability factor * w_i. GShard (section 2.2, "random routing"): 2 with
/// weights normalised; Mesh TensorFlow's threshold 0.2: factor 5; ST-MoE likewise.
struct RandomSecond {
  using policy = kind::skipping;
  static constexpr bool takes_team = true;
  static constexpr bool ranks_choices = true;
  double factor = 2;

  template <class Real>
  KOKKOS_FUNCTION void keep(const Team& team, Row<const Real> weights, Row<std::uint8_t> live,
                            const TokenFacts& token) const {
    if (!token.random.active) return;
    const RowRandom random = token.random.of(Purpose::skip);
    team.each(weights.size, [&](Index i) {
      if (i > 0 && !(Real(factor) * weights[i] > random.uniform<Real>(i - 1))) live[i] = 0;
    });
  }
};

/// Choice i > 0 goes where w_i < beta * w_0 (Lu et al. 2024, "Not all experts are equal", section 3.3; beta is the
/// median of w_1 / w_0 over a calibration set).
struct DynamicSkip {
  using policy = kind::skipping;
  static constexpr bool takes_team = true;
  static constexpr bool ranks_choices = true;
  double beta = 0.5;

  template <class Real>
  KOKKOS_FUNCTION void keep(const Team& team, Row<const Real> weights, Row<std::uint8_t> live,
                            const TokenFacts&) const {
    team.each(weights.size, [&](Index i) {
      if (i > 0 && weights[i] < Real(beta) * weights[0]) live[i] = 0;
    });
  }
};

MOE_NAMESPACE_END
