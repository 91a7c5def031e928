#pragma once
/// @file
/// Lists of policies given in any order: picking by category, values by type, and the sentences for misfits.

#include <Kokkos_Macros.hpp>
#include <concepts>
#include <tuple>
#include <type_traits>

#include "moe/core/kind.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

template <class P>
concept HasKind = requires {
  typename P::policy;
};

/// The category of P, or void.
template <class P>
struct KindOf {
  using type = void;
};
template <HasKind P>
struct KindOf<P> {
  using type = typename P::policy;
};
template <class P, class... Kinds>
inline constexpr bool is_kind = (std::is_same_v<typename KindOf<P>::type, Kinds> || ...);

template <class Kind, class... Policies>
inline constexpr int count_kind = (0 + ... + int(is_kind<Policies, Kind>));

/// The first policy of a category, or the default.
template <class Kind, class Default, class... Policies>
struct Pick {
  using type = Default;
};
template <class Kind, class Default, class First, class... Rest>
struct Pick<Kind, Default, First, Rest...>
    : std::conditional_t<is_kind<First, Kind>, std::type_identity<First>, Pick<Kind, Default, Rest...>> {};

/// A list of types, and a filter on it that keeps order.
template <class... Ts>
struct List {};
template <class Kind, class Kept, class... Policies>
struct Filter {
  using type = Kept;
};
template <class Kind, class... Kept, class First, class... Rest>
struct Filter<Kind, List<Kept...>, First, Rest...>
    : Filter<Kind, std::conditional_t<is_kind<First, Kind>, List<Kept..., First>, List<Kept...>>, Rest...> {};

/// The position that a policy of a chain asks for: `static constexpr int order` of -1, 0 or 1; 0 where it does not say.
template <class P>
KOKKOS_FUNCTION constexpr int order_of() {
  if constexpr (requires { P::order; }) {
    return P::order;
  } else {
    return 0;
  }
}

/// Is a policy on rows written for any number of lanes? It says so by `static constexpr bool takes_team = true`; see
/// core/team.hpp.
template <class P>
constexpr bool takes_team() {
  if constexpr (requires { P::takes_team; }) {
    return P::takes_team;
  } else {
    return false;
  }
}

/// Policies as a device-friendly chain, those of low `order` first, in given order among equals.
template <class... Policies>
struct Chain {
  static constexpr int size = 0;
  static constexpr bool takes_team = true;
  template <class Source>
  static Chain from(const Source&) {
    return {};
  }
  template <class F>
  KOKKOS_FUNCTION void each(const F&) const {}
};
template <class First, class... Rest>
struct Chain<First, Rest...> {
  static constexpr int size = 1 + sizeof...(Rest);
  static constexpr bool takes_team = detail::takes_team<First>() && Chain<Rest...>::takes_team;
  First first;
  Chain<Rest...> rest;

  template <class Source>
  static Chain from(const Source& values) {
    return {std::get<First>(values), Chain<Rest...>::from(values)};
  }
  /// Calls f(policy) for each in turn; f is a functor usable where this runs.
  template <class F>
  KOKKOS_FUNCTION void each(const F& f) const {
    f(first);
    rest.each(f);
  }
};

template <int order, class Kept, class... Ps>
struct OfOrder {
  using type = Kept;
};
template <int order, class... Kept, class First, class... Rest>
struct OfOrder<order, List<Kept...>, First, Rest...>
    : OfOrder<order, std::conditional_t<order_of<First>() == order, List<Kept..., First>, List<Kept...>>, Rest...> {};

template <class A, class B, class C>
struct ChainOf;
template <class... A, class... B, class... C>
struct ChainOf<List<A...>, List<B...>, List<C...>> {
  using type = Chain<A..., B..., C...>;
};
template <class L>
struct Ordered;
template <class... Ps>
struct Ordered<List<Ps...>>
    : ChainOf<typename OfOrder<-1, List<>, Ps...>::type, typename OfOrder<0, List<>, Ps...>::type,
              typename OfOrder<1, List<>, Ps...>::type> {};

/// The policies of one category in a chain.
template <class Kind, class... Policies>
using ChainFor = typename Ordered<typename Filter<Kind, List<>, Policies...>::type>::type;

/// Is T one of Ts?
template <class T, class... Ts>
inline constexpr bool one_of = (std::is_same_v<T, Ts> || ...);

/// Copies those of `values` that `target`, a tuple, has a place for.
template <class Tuple, class... Values>
void assign_values(Tuple& target, const Values&... values) {
  ((std::get<Values>(target) = values), ...);
}

}  // namespace detail

MOE_NAMESPACE_END
