#pragma once
/// @file
/// `Routing`: what the router hands on to dispatch, losses and its own backward.

#include "moe/core/assignments.hpp"
#include "moe/core/context.hpp"

MOE_NAMESPACE_BEGIN

/// Sizes a router is built for.
struct RouterShape {
  Index experts = 0;  ///< E
  Index hidden = 0;   ///< H', the width of the router's input
};

/// The decision for one batch, and what its backward needs.
template <class Real, class Space = Kokkos::DefaultExecutionSpace>
struct Routing {
  Matrix<Real, Space> logits;            ///< (T, E) after maps on logits
  Matrix<Real, Space> scores;            ///< (T, E)
  Assignments<Real, Space> assignments;  ///< choices and their combine weights
  RandomKey random;                      ///< of this pass: backward replays the draws
  bool noisy = false;                    ///< did noise act?
};

/// The draws of one token for one purpose, for policies on rows.
struct RowRandom {
  RandomKey key;
  Index token = 0;
  bool active = false;  ///< noise acts only while training

  /// The i-th draw, uniform in [0, 1).
  template <class Real>
  KOKKOS_FUNCTION Real uniform(Index i) const {
    return random_uniform<Real>(key, std::uint64_t(token), std::uint32_t(i));
  }
  /// The i-th draw, standard normal.
  template <class Real>
  KOKKOS_FUNCTION Real normal(Index i) const {
    return random_normal<Real>(key, std::uint64_t(token), std::uint32_t(i));
  }
};

MOE_NAMESPACE_END
