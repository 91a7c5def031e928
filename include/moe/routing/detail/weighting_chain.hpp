#pragma once
/// @file
/// The weightings of a router in a row, forward and backward, with the parameters of the learned ones.

#include <array>

#include "moe/core/policy.hpp"
#include "moe/routing/weighting.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

template <class P>
concept LearnedWeighting = requires {
  P::name;
};

/// Trained arrays of a chain of weightings: one vector each, unallocated where there is nothing to learn.
template <class Real, class Space, class... Ws>
struct WeightingParameters {
  std::array<Vector<Real, Space>, sizeof...(Ws)> values;

  static WeightingParameters make(const Chain<Ws...>& chain, const RouterShape& shape) {
    WeightingParameters result;
    allocate<0>(chain, shape, result);
    return result;
  }

  template <class F, class... Same>
  static void visit(F&& f, Same&... same) {
    std::size_t i = 0;
    auto one = [&]<class W>() {
      if constexpr (LearnedWeighting<W>) f(W::name, same.values[i]...);
      ++i;
    };
    (one.template operator()<Ws>(), ...);
  }

 private:
  template <int i>
  static void allocate(const Chain<>&, const RouterShape&, WeightingParameters&) {}
  template <int i, class First, class... Rest>
  static void allocate(const Chain<First, Rest...>& chain, const RouterShape& shape, WeightingParameters& result) {
    if constexpr (LearnedWeighting<First>) {
      result.values[i] = Vector<Real, Space>("moe::weighting", chain.first.size(shape));
      Kokkos::deep_copy(result.values[i], Real(chain.first.initial));
    }
    allocate<i + 1>(chain.rest, shape, result);
  }
};

template <class C, class Real, class Space>
struct WeightingParametersOf;
template <class... Ws, class Real, class Space>
struct WeightingParametersOf<Chain<Ws...>, Real, Space> {
  using type = WeightingParameters<Real, Space, Ws...>;
  static constexpr bool any = (LearnedWeighting<Ws> || ...);
};

/// A source's parameters and those of learned weightings.
template <class Source, class Weightings>
struct WithWeightings : Source {
  Weightings weightings;
  template <class F, class... Same>
  static void visit(F&& f, Same&... same) {
    Source::visit(f, same...);
    Weightings::visit(f, same.weightings...);
  }
};

/// Where a chain's parameters, or their gradients, lie: a row for each weighting.
template <class Real, int count>
struct WeightingRows {
  Row<Real> rows[count == 0 ? 1 : count] = {};
};

template <class Real, class Parameters>
auto weighting_rows(const Parameters& parameters) {
  constexpr int count = int(std::tuple_size_v<decltype(parameters.values)>);
  WeightingRows<const Real, count> result;
  for (int i = 0; i < count; ++i) result.rows[i] = {parameters.values[i].data(), Index(parameters.values[i].size())};
  return result;
}

template <class W, class Real>
KOKKOS_FUNCTION void apply_weighting(const W& w, const Team& team, Row<Real> weights, Row<const ExpertId> chosen,
                                     Row<const Real> parameter) {
  if constexpr (LearnedWeighting<W>) {
    w.apply(team, weights, chosen, parameter);
  } else if constexpr (requires { w.apply(team, weights, chosen); }) {
    w.apply(team, weights, chosen);
  } else {
    w.apply(team, weights);
  }
}

template <class W, class Real>
KOKKOS_FUNCTION void pull_weighting(const W& w, const Team& team, Row<const Real> before, Row<const ExpertId> chosen,
                                    Row<const Real> parameter, Row<Real> gradient, Row<Real> dparameter) {
  if constexpr (LearnedWeighting<W>) {
    w.pullback(team, before, chosen, parameter, gradient, dparameter);
  } else if constexpr (requires { w.pullback(team, before, chosen, gradient); }) {
    w.pullback(team, before, chosen, gradient);
  } else {
    w.pullback(team, before, gradient);
  }
}

/// Applies a chain in place.
template <int i = 0, class Real, class Rows>
KOKKOS_FUNCTION void apply_weightings(const Chain<>&, const Team&, Row<Real>, Row<const ExpertId>, const Rows&) {}
template <int i = 0, class First, class... Rest, class Real, class Rows>
KOKKOS_FUNCTION void apply_weightings(const Chain<First, Rest...>& chain, const Team& team, Row<Real> weights,
                                      Row<const ExpertId> chosen, const Rows& parameters) {
  apply_weighting(chain.first, team, weights, chosen, parameters.rows[i]);
  apply_weightings<i + 1>(chain.rest, team, weights, chosen, parameters);
}

/// Pulls `gradient` back through a chain; work(i) is a row for what weighting i saw, work(0) given.
template <int i = 0, class Real, class Work, class Rows, class Partial>
KOKKOS_FUNCTION void pull_weightings(const Chain<>&, const Team&, const Work&, Row<const ExpertId>, const Rows&,
                                     Row<Real>, const Partial&) {}
template <int i = 0, class First, class... Rest, class Real, class Work, class Rows, class Partial>
KOKKOS_FUNCTION void pull_weightings(const Chain<First, Rest...>& chain, const Team& team, const Work& work,
                                     Row<const ExpertId> chosen, const Rows& parameters, Row<Real> gradient,
                                     const Partial& dparameters) {
  const Row<Real> before = work(i), after = work(i + 1);
  team.each(gradient.size, [&](Index a) { after[a] = before[a]; });
  apply_weighting(chain.first, team, after, chosen, parameters.rows[i]);
  pull_weightings<i + 1>(chain.rest, team, work, chosen, parameters, gradient, dparameters);
  pull_weighting(chain.first, team, Row<const Real>{before.data, before.size}, chosen, parameters.rows[i], gradient,
                 dparameters.rows[i]);
}

}  // namespace detail

MOE_NAMESPACE_END
