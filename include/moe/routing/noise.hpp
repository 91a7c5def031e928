#pragma once
/// @file
/// Row maps: noise, caps and the like on the router's input or on its logits.
///
/// A row map is a struct with `using policy = moe::kind::row_map;`, `static constexpr MapPlace place`, and
///
///     template <class Real>
///     KOKKOS_FUNCTION void apply(const Team&, Row<Real> row, const RowRandom&) const;
///     template <class Real>
///     KOKKOS_FUNCTION void pullback(const Team&, Row<const Real> result, Row<Real> gradient, const RowRandom&) const;
///
/// Several may act on the logits, in the order of the router's arguments; one on its input. `takes_team`: see
/// scoring.hpp.

#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// Where a row map acts.
enum class MapPlace { input, logits };

/// Multiplies the router's input by draws from [1 - epsilon, 1 + epsilon] while training (Fedus et al. 2021, Switch
/// Transformer, section 2.2; 1e-2 there). The experts see the tokens as they are; see InputJitter for the other way.
struct Jitter {
  using policy = kind::row_map;
  static constexpr bool takes_team = true;
  static constexpr MapPlace place = MapPlace::input;
  double epsilon = 1e-2;

  template <class Real>
  KOKKOS_FUNCTION Real factor(const RowRandom& random, Index i) const {
    return Real(1) + Real(epsilon) * (Real(2) * random.uniform<Real>(i) - Real(1));
  }

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> row, const RowRandom& random) const {
    if (random.active) team.each(row.size, [&](Index i) { row[i] *= factor<Real>(random, i); });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real>, Row<Real> gradient, const RowRandom& random) const {
    if (random.active) team.each(gradient.size, [&](Index i) { gradient[i] *= factor<Real>(random, i); });
  }
};

/// Adds scale * Gumbel noise to the logits while training, and so to choices and weights; see GumbelSampling for
/// choices alone.
struct GumbelNoise {
  using policy = kind::row_map;
  static constexpr bool takes_team = true;
  static constexpr MapPlace place = MapPlace::logits;
  double scale = 1;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> row, const RowRandom& random) const {
    if (random.active)
      team.each(row.size, [&](Index e) { row[e] += Real(scale) * random.of(Purpose::gumbel).gumbel<Real>(e); });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team&, Row<const Real>, Row<Real>, const RowRandom&) const {}
};

/// z = cap * tanh(z / cap): logits stay within +-cap (Laguna; Gemma 2's attention).
struct SoftCap {
  using policy = kind::row_map;
  static constexpr bool takes_team = true;
  static constexpr MapPlace place = MapPlace::logits;
  double cap = 30;

  void check(const RouterShape&) const {
    detail::require<ConfigError>(cap > 0, "moe::SoftCap: cap is ", cap, "; it must be positive.");
  }

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> row, const RowRandom&) const {
    team.each(row.size, [&](Index e) { row[e] = Real(cap) * Kokkos::tanh(row[e] / Real(cap)); });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real> result, Row<Real> gradient, const RowRandom&) const {
    team.each(gradient.size, [&](Index e) {
      const Real t = result[e] / Real(cap);
      gradient[e] *= Real(1) - t * t;
    });
  }
};

/// z = factor * z (Muse Spark's output multiplier; 1 / temperature).
struct LogitScale {
  using policy = kind::row_map;
  static constexpr bool takes_team = true;
  static constexpr MapPlace place = MapPlace::logits;
  double factor = 1;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> row, const RowRandom&) const {
    team.each(row.size, [&](Index e) { row[e] *= Real(factor); });
  }

  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real>, Row<Real> gradient, const RowRandom&) const {
    team.each(gradient.size, [&](Index e) { gradient[e] *= Real(factor); });
  }
};

MOE_NAMESPACE_END
