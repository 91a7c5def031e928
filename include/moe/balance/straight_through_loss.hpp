#pragma once
/// @file
/// `StraightThroughLoss`: any function of the load as a loss, with the gradient of the mean probabilities.
///
/// A function of the load is a copyable struct with
///
///     KOKKOS_FUNCTION double value(Row<const double> load) const           // of F (E), which sums to one
///     KOKKOS_FUNCTION double slope(Row<const double> load, Index e) const  // d value / d F_e

#include <concepts>

#include "moe/balance/losses.hpp"

MOE_NAMESPACE_BEGIN

/// E / 2 * sum_e F_e^2: 1/2 at balance, E / (2 K) where K experts have all. Its gradient is
/// ExpertBalanceLoss's where scores sum to one.
struct LoadSquares {
  KOKKOS_FUNCTION double value(Row<const double> load) const {
    double sum = 0;
    for (Index e = 0; e < load.size; ++e) sum += load[e] * load[e];
    return double(load.size) / 2 * sum;
  }
  KOKKOS_FUNCTION double slope(Row<const double> load, Index e) const { return double(load.size) * load[e]; }
};

/// sum_e F_e log(E F_e), how far the load's entropy is below log E: 0 at balance, log(E / K) where K experts have all.
/// The slope of an expert without load would be infinite: slopes are those of a load of `floor` at least.
struct LoadEntropy {
  double floor = 1e-6;

  KOKKOS_FUNCTION double value(Row<const double> load) const {
    double sum = 0;
    for (Index e = 0; e < load.size; ++e) sum += load[e] > 0 ? load[e] * Kokkos::log(double(load.size) * load[e]) : 0.0;
    return sum;
  }
  KOKKOS_FUNCTION double slope(Row<const double> load, Index e) const {
    return Kokkos::log(double(load.size) * (load[e] > floor ? load[e] : floor)) + 1;
  }
};

/// What StraightThroughLoss asks of a function of the load.
template <class F>
concept LoadFunction = std::copyable<F> && requires(const F f, Row<const double> load) {
  { f.value(load) } -> std::convertible_to<double>;
  { f.slope(load, Index()) } -> std::convertible_to<double>;
};

namespace detail {

template <class F>
inline constexpr bool is_load_function = LoadFunction<F>;

template <class F>
struct CheckLoadFunction {
  static_assert(is_load_function<F>,
                "moe::StraightThroughLoss: this function of the load lacks a member. It needs KOKKOS_FUNCTION "
                "`value(Row<const double> load) const` and `slope(Row<const double> load, Index expert) const`, both "
                "double; see moe/balance/straight_through_loss.hpp.");
};

}  // namespace detail

/// coefficient * G(F), with the gradient of G(P + sg[F - P]): F_e the part of all choices that went to e, which has no
/// gradient of its own, P_e the mean of e's score over the sum of scores, and sg a constant to the gradient. (The
/// straight-through estimator of Bengio et al. 2013, which the product f P is for G = LoadSquares.) G is LoadSquares,
/// LoadEntropy or the user's. With a scope, the mean over sequences or groups.
template <class Function = LoadSquares>
struct StraightThroughLoss : detail::BalanceLossPolicy<StraightThroughLoss<Function>> {
  static_assert(sizeof(detail::CheckLoadFunction<Function>) > 0);
  using policy = kind::loss;
  /// Function, or a valid one in its place, so that nothing follows the first error.
  using Valid = std::conditional_t<detail::is_load_function<Function>, Function, LoadSquares>;
  double coefficient = 1e-2;
  Valid function;
  Scope scope = Scope::batch();

  explicit StraightThroughLoss(double c = 1e-2, Valid f = {}, Scope s = Scope::batch())
      : coefficient(c), function(f), scope(s) {}
  detail::BalanceRule rule(double) const {
    return {coefficient, Count::all, scope, Probability::normalized_scores, true};
  }
};

/// From a function's value: StraightThroughLoss{1e-2, LoadEntropy{}}.
template <class Function>
StraightThroughLoss(double, Function) -> StraightThroughLoss<Function>;
template <class Function>
StraightThroughLoss(double, Function, Scope) -> StraightThroughLoss<Function>;

MOE_NAMESPACE_END
