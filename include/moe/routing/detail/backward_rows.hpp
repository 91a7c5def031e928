#pragma once
/// @file
/// The router's kernels of the backward pass, and the step of its balancing bias.

#include "moe/routing/detail/rows.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

/// The gradient of a token's input, added to dx.
template <class T, class Real, class Space, class Maps>
struct InputGradientRow {
  Matrix<const Real, Space> input;
  Matrix<Real, Space> dinput;
  Matrix<T, Space> dx;
  RowDraws<Space> draws;
  Maps maps;
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Row<Real> gradient = row_of(dinput, t);
    const Row<T> to = row_of(dx, t);
    const Row<Real> result{const_cast<Real*>(input.data()) + t * gradient.size, gradient.size};  // only read
    maps.pullback(team, result, gradient, Row<Real>{}, draws.row(t, Purpose::jitter));
    team.each(gradient.size, [&](Index i) { to[i] += T(gradient[i]); });
  }
};

/// Pulls the gradient of the weights and scores of a chunk of tokens back to their logits.
template <class Real, class Space, class Maps, class Scoring, class Selection, class Weightings>
struct BackwardChunk {
  Routing<Real, Space> routing;
  RoutingGradients<Real, Space> gradients;
  Matrix<Real, Space> work;     // (stages + 1, A): what each weighting saw
  Vector<Real, Space> dchosen;  // (A)
  Matrix<Real, Space> maps_work;
  Vector<const std::uint8_t, Space> mask;
  RowDraws<Space> draws;
  Maps maps;
  Scoring scoring;
  Selection selection;
  Weightings chain;
  WeightingRows<const Real, Weightings::size> parameters;
  Index chunk;                  // tokens in a row, so that learned weightings have one place to add to
  Matrix<Real, Space> partial;  // (chunks, parameters of all weightings)

  struct Work {
    Matrix<Real, Space> all;
    Index begin, size;
    KOKKOS_FUNCTION Row<Real> operator()(Index stage) const {
      return {all.data() + stage * Index(all.extent(1)) + begin, size};
    }
  };

  KOKKOS_FUNCTION void token(Index t, const Team& team,
                             const WeightingRows<Real, Weightings::size>& dparameters) const {
    const Row<Real> dz = row_of(gradients.dlogits, t), ds = row_of(gradients.dscores, t), s = row_of(routing.scores, t),
                    z = row_of(routing.logits, t);
    const Row<const Real> scores{s.data, s.size};
    if (is_padding<Space>(mask, t)) {
      team.each(dz.size, [&](Index e) { dz[e] = 0; });
      return;
    }
    const auto& assignments = routing.assignments;
    const Index begin = assignments.begin(t), size = assignments.end(t) - begin;
    const Row<Real> gradient{dchosen.data() + begin, size}, first{work.data() + begin, size};
    const Row<const ExpertId> chosen{assignments.expert.data() + begin, size};
    TokenFacts facts;
    if constexpr (WeighingSelection<Selection>) facts = draws.facts(t, Purpose::sample);
    team.each(size, [&](Index i) { gradient[i] = chosen[i] == no_expert ? Real(0) : gradients.dweight(begin + i); });
    first_weights(selection, team, scores, chosen, first, facts);
    pull_weightings(chain, team, Work{work, begin, size}, chosen, parameters, gradient, dparameters);
    if constexpr (WeighingSelection<Selection>) {
      selection.weigh_pullback(team, scores, chosen, Row<const Real>{gradient.data, size}, ds, facts);
    } else {
      for (Index i = 0; i < size; ++i) {  // an expert may be chosen twice: one lane adds all that is its
        if (chosen[i] != no_expert && team.owns(chosen[i])) ds[chosen[i]] += gradient[i];
      }
      team.sync();
    }
    scoring.pullback(team, scores, ds);
    team.each(dz.size, [&](Index e) { dz[e] += ds[e]; });
    if constexpr (Maps::count > 0) {
      const Row<Real> rows{maps_work.data() + t * Index(maps_work.extent(1)), Index(maps_work.extent(1))};
      if constexpr (Maps::count > 1) {
        team.each(dz.size, [&](Index e) { rows[e] = routing.raw_logits(t, e); });
      }
      maps.pullback(team, z, dz, rows, draws.row(t, Purpose::noise));
    }
  }

  /// A token by a team, where no weighting learns.
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const { token(t, team, {}); }
  KOKKOS_FUNCTION void operator()(Index c) const {
    WeightingRows<Real, Weightings::size> dparameters;
    if (partial.data() != nullptr) {
      Real* next = partial.data() + c * Index(partial.extent(1));
      for (int i = 0; i < Weightings::size; ++i) {
        dparameters.rows[i] = {next, parameters.rows[i].size};
        next += parameters.rows[i].size;
      }
    }
    const Index tokens = routing.assignments.tokens, last = (c + 1) * chunk < tokens ? (c + 1) * chunk : tokens;
    for (Index t = c * chunk; t < last; ++t) token(t, Team{}, dparameters);
  }
};

/// Adds the chunks' parts of one learned weighting's gradient, in order.
template <class Real, class Space>
struct SumPartials {
  Matrix<const Real, Space> partial;
  Index first;
  Vector<Real, Space> gradient;
  KOKKOS_FUNCTION void operator()(Index i) const {
    Real sum = 0;
    for (Index c = 0; c < Index(partial.extent(0)); ++c) sum += partial(c, first + i);
    gradient(i) += sum;
  }
};

/// How many experts, the last ones, a selection gives to every token.
template <class Selection>
constexpr Index shared_experts() {
  if constexpr (requires { Selection::shared_experts; }) {
    return Selection::shared_experts;
  } else {
    return 0;
  }
}

/// One step of the balancing bias. Experts that every token has are no matter of balance.
template <class Real, class Space, class Balancer>
struct BalanceStep {
  Vector<Real, Space> bias;
  Vector<const Index, Space> counts, tokens;  // (E), (1)
  Balancer balancer;
  Index shared;
  KOKKOS_FUNCTION void operator()(Index) const {
    const Index experts = Index(bias.extent(0)) - shared;
    balancer.step(Row<Real>{bias.data(), experts}, Row<const Index>{counts.data(), experts}, double(tokens(0)));
  }
};

}  // namespace detail

MOE_NAMESPACE_END
