#pragma once
/// @file
/// The contracts of the router's policies, and the one sentence each misfit gets.
///
/// A message stands in a helper templated on the offender alone, so the compiler prints one error with the
/// offender's name; the router then carries on with a valid default, so nothing follows.

#include <concepts>

#include "moe/core/policy.hpp"
#include "moe/routing/expert_choice.hpp"
#include "moe/routing/linear_logits.hpp"
#include "moe/routing/routing.hpp"
#include "moe/routing/scoring.hpp"
#include "moe/routing/top_k.hpp"

MOE_NAMESPACE_BEGIN

/// Logits to scores, with a pullback; see scoring.hpp.
template <class P>
concept ScoringPolicy = std::copyable<P> && requires(const P p, Team team, Row<float> row, Row<const float> scores) {
  p.apply(team, row);
  p.pullback(team, scores, row);
};

/// A map on the router's input or logits, with a pullback; see noise.hpp.
template <class P>
concept RowMapPolicy = std::copyable<P> &&
    requires(const P p, Team team, Row<float> row, Row<const float> result, RowRandom random) {
  P::place;
  p.apply(team, row, random);
  p.pullback(team, result, row, random);
};

/// Changes the keys that the selection compares; see choice_key.hpp.
template <class P>
concept ChoiceKeyPolicy = std::copyable<P> &&(
    requires(const P p, Team team, Row<const float> row, Row<float> key) { p.apply(team, row, row, key); } ||
    requires(const P p, Team team, Row<const float> row, Row<float> key, TokenFacts token) {
      p.apply(team, row, row, key, token);
    });

/// A bias on the choice and its step; see balancer.hpp.
template <class P>
concept BalancerPolicy = std::copyable<P> && requires(const P p, Row<float> bias, Row<const Index> load) {
  p.step(bias, load, 1.0);
};

/// Each token chooses for itself; see top_k.hpp.
template <class P>
concept RowSelection = std::copyable<P> &&(
                           requires(const P p) {
                             { p.choices() } -> std::convertible_to<Index>;
                           } ||
                           requires(const P p, Index experts) {
                             { p.choices(experts) } -> std::convertible_to<Index>;
                           }) &&
                       (
                           requires(const P p, Team team, Row<float> key, Row<ExpertId> chosen) {
                             p.select(team, key, chosen);
                           } ||
                           requires(const P p, Team team, Row<float> key, Row<ExpertId> chosen, TokenFacts token) {
                             p.select(team, key, chosen, token);
                           });

/// Looks at many tokens at once; see expert_choice.hpp.
template <class P>
concept BatchSelection = std::copyable<P> &&
    requires(const P p, Context<Kokkos::DefaultHostExecutionSpace>& ctx,
             Matrix<float, Kokkos::DefaultHostExecutionSpace> keys,
             Batch<float, Kokkos::DefaultHostExecutionSpace> batch,
             Assignments<float, Kokkos::DefaultHostExecutionSpace> assignments) {
  { p.bound(batch, Index(1)) } -> std::convertible_to<Index>;
  p.select(ctx, keys, batch, assignments);
};

/// A step of the chain from scores to combine weights, with a pullback; see weighting.hpp.
template <class P>
concept WeightingPolicy = std::copyable<P> &&(
    requires(const P p, Team team, Row<float> row, Row<const float> before) {
      p.apply(team, row);
      p.pullback(team, before, row);
    } ||
    requires(const P p, Team team, Row<float> row, Row<const float> before, Row<const ExpertId> chosen) {
      p.apply(team, row, chosen);
      p.pullback(team, before, chosen, row);
    } ||
    requires(const P p, Team team, Row<float> row, Row<const float> before, Row<const ExpertId> chosen,
             RouterShape shape) {
      P::name;
      { p.size(shape) } -> std::convertible_to<Index>;
      p.initial;
      p.apply(team, row, chosen, before);
      p.pullback(team, before, chosen, before, row, row);
    });

/// Takes choices away by their weights; see skipping.hpp.
template <class P>
concept SkippingPolicy = std::copyable<P> &&
    requires(const P p, Team team, Row<const float> weights, Row<std::uint8_t> live, TokenFacts token) {
  p.keep(team, weights, live, token);
};

namespace detail {

/// K of a token's choices.
template <class Selection>
Index choices_of(const Selection& selection, Index experts) {
  if constexpr (requires { selection.choices(experts); }) {
    return selection.choices(experts);
  } else {
    return selection.choices();
  }
}

/// A selection that reads a table of the router's buffers; see table.hpp.
template <class P>
concept TableSelection = requires(const P p) {
  p.table_rows;
};

template <class P>
inline constexpr bool is_router_policy = is_kind<P, kind::logits, kind::row_map, kind::scoring, kind::choice_key,
                                                 kind::balancer, kind::selection, kind::weighting, kind::skipping>;

// One constant a category, so that a failing assertion prints no concept's innards.
template <class P>
inline constexpr bool fits_scoring = !is_kind<P, kind::scoring> || ScoringPolicy<P>;
template <class P>
inline constexpr bool fits_row_map = !is_kind<P, kind::row_map> || RowMapPolicy<P>;
template <class P>
inline constexpr bool fits_choice_key = !is_kind<P, kind::choice_key> || ChoiceKeyPolicy<P>;
template <class P>
inline constexpr bool fits_balancer = !is_kind<P, kind::balancer> || BalancerPolicy<P>;
template <class P>
inline constexpr bool fits_selection = !is_kind<P, kind::selection> || RowSelection<P> || BatchSelection<P>;
template <class P>
inline constexpr bool fits_weighting = !is_kind<P, kind::weighting> || WeightingPolicy<P>;
template <class P>
inline constexpr bool fits_skipping = !is_kind<P, kind::skipping> || SkippingPolicy<P>;
template <class P>
inline constexpr bool fits_router = is_router_policy<P>&& fits_scoring<P>&& fits_row_map<P>&& fits_choice_key<P>&&
    fits_balancer<P>&& fits_selection<P>&& fits_weighting<P>&& fits_skipping<P>;

/// Says what is wrong with one argument of Router<...>.
template <class P>
struct CheckRouterPolicy {
  static_assert(
      is_router_policy<P>,
      "moe::Router: this argument is not a router policy. Give a custom one `using policy = "
      "moe::kind::scoring;` (or logits, row_map, choice_key, balancer, selection, weighting, skipping); experts, "
      "capacity, branches and losses are arguments of moe::MoELayer.");
  static_assert(fits_scoring<P>,
                "moe::Router: this scoring lacks a member. It needs KOKKOS_FUNCTION `apply(const Team&, Row<Real> "
                "row) const` and `pullback(const Team&, Row<const Real> scores, Row<Real> gradient) const`.");
  static_assert(fits_row_map<P>,
                "moe::Router: this row map lacks a member. It needs `static constexpr moe::MapPlace place` and "
                "KOKKOS_FUNCTION `apply(const Team&, Row<Real>, const RowRandom&) const` and `pullback(const Team&, "
                "Row<const Real> result, Row<Real> gradient, const RowRandom&) const`.");
  static_assert(fits_choice_key<P>,
                "moe::Router: this choice key lacks a member. It needs KOKKOS_FUNCTION `apply(const Team&, Row<const "
                "Real> logits, Row<const Real> scores, Row<Real> key) const`.");
  static_assert(fits_balancer<P>,
                "moe::Router: this balancer lacks a member. It needs KOKKOS_FUNCTION `step(Row<Real> bias, Row<const "
                "Index> load, double tokens) const`.");
  static_assert(fits_selection<P>,
                "moe::Router: this selection lacks a member. A token's choice needs `choices() const` and "
                "KOKKOS_FUNCTION `select(const Team&, Row<Real> key, Row<ExpertId> chosen) const`; a choice over "
                "many tokens needs `bound(batch, experts) const` and `select(ctx, keys, batch, assignments) const`.");
  static_assert(fits_weighting<P>,
                "moe::Router: this weighting lacks a member. It needs KOKKOS_FUNCTION `apply(const Team&, Row<Real> "
                "weights) const` and `pullback(const Team&, Row<const Real> before, Row<Real> gradient) const`.");
  static_assert(fits_skipping<P>,
                "moe::Router: this skipping lacks a member. It needs KOKKOS_FUNCTION `keep(const Team&, Row<const "
                "Real> weights, Row<std::uint8_t> live, const TokenFacts&) const`.");
};

/// Says that a single-choice category was given twice.
template <int scorings, int selections, int balancers, int sources>
struct CheckRouterCounts {
  static_assert(scorings <= 1, "moe::Router: two scorings are given; a router has one. Keep one of them.");
  static_assert(selections <= 1, "moe::Router: two selections are given; a router has one. Keep one of them.");
  static_assert(balancers <= 1, "moe::Router: two balancers are given; a router has one. Keep one of them.");
  static_assert(sources <= 1, "moe::Router: two logit sources are given; a router has one. Keep one of them.");
};

/// A value given to a router's constructor that is none of its policies.
template <class Value, bool known>
struct CheckRouterValue {
  static_assert(known,
                "moe::Router: a value was given of a policy that this router's type does not name. Add the policy to "
                "Router<...>, or drop the value.");
};

template <class P, class Default>
using ValidOr = std::conditional_t<fits_router<P>, P, Default>;

}  // namespace detail

MOE_NAMESPACE_END
