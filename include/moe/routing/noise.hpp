#pragma once
/// @file
/// Row maps: noise and the like on the router's input or on its logits.
///
/// A row map is a struct with `using policy = moe::kind::row_map;`, `static constexpr MapPlace place`, and
///
///     template <class Real>
///     KOKKOS_FUNCTION void apply(const Team&, Row<Real> row, const RowRandom&) const;
///     template <class Real>
///     KOKKOS_FUNCTION void pullback(const Team&, Row<const Real> result, Row<Real> gradient, const RowRandom&) const;

#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// Where a row map acts.
enum class MapPlace { input, logits };

/// Multiplies the router's input by draws from [1 - epsilon, 1 + epsilon] while training (Fedus et al. 2021, Switch
/// Transformer, section 2.2; 1e-2 there).
struct Jitter {
  using policy = kind::row_map;
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

MOE_NAMESPACE_END
