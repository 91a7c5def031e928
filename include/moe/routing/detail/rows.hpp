#pragma once
/// @file
/// The router's kernels: one token's row each.

#include "moe/core/policy.hpp"
#include "moe/routing/detail/weighting_chain.hpp"
#include "moe/routing/noise.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

struct NoBalancer {
  template <class Real>
  KOKKOS_FUNCTION void apply(const Team&, Row<const Real>, Row<Real>) const {}
};

/// Calls `policy.check(shape)` where a policy has one.
template <class P>
void check_policy(const P& policy, const RouterShape& shape) {
  if constexpr (requires { policy.check(shape); }) policy.check(shape);
}

/// Refuses a K that a group limit leaves too few experts for.
template <class P>
void check_choices(const P& policy, Index k, const RouterShape& shape) {
  if constexpr (requires { policy.choices(shape.experts); }) {
    require<ConfigError>(k <= policy.choices(shape.experts), "moe::Router: ", k,
                         " choices a token, but the group limit leaves ", policy.choices(shape.experts),
                         " experts. Keep more groups or choose fewer.");
  }
}

/// The row maps of a chain that act at one place, in order; their pullbacks in reverse.
template <MapPlace place, class Maps>
struct RowMaps;
template <MapPlace place>
struct RowMaps<place, Chain<>> {
  static constexpr int count = 0;
  Chain<> maps;
  template <class Real>
  KOKKOS_FUNCTION void apply(const Team&, Row<Real>, const RowRandom&) const {}
  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team&, Row<Real>, Row<Real>, Row<Real>, const RowRandom&) const {}
};
template <MapPlace place, class First, class... Rest>
struct RowMaps<place, Chain<First, Rest...>> {
  using Next = RowMaps<place, Chain<Rest...>>;
  static constexpr bool here = First::place == place;
  static constexpr int count = int(here) + Next::count;
  static_assert(place == MapPlace::logits || count < 2,
                "moe::Router: two row maps act on the router's input; write them as one.");
  Chain<First, Rest...> maps;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> row, const RowRandom& random) const {
    if constexpr (here) maps.first.apply(team, row, random);
    Next{maps.rest}.apply(team, row, random);
  }
  /// `result` is what the maps gave. More than one of them need what they started from, in work's first row; the rows
  /// behind it are scratch.
  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<Real> result, Row<Real> gradient, Row<Real> work,
                                const RowRandom& random) const {
    const Row<const Real> whole{result.data, result.size};
    if constexpr (!here) {
      Next{maps.rest}.pullback(team, result, gradient, work, random);
    } else if constexpr (Next::count == 0) {
      maps.first.pullback(team, whole, gradient, random);
    } else {
      const Row<Real> mine{work.data, result.size}, behind{work.data + result.size, result.size};
      maps.first.apply(team, mine, random);
      for (Index e = 0; e < mine.size; ++e) behind[e] = mine[e];
      Next{maps.rest}.pullback(team, result, gradient, behind, random);
      maps.first.pullback(team, Row<const Real>{mine.data, mine.size}, gradient, random);
    }
  }
};

/// A token's input in the router's precision, with input maps.
template <class T, class Real, class Space, class Maps>
struct InputRow {
  Matrix<const T, Space> x;
  Matrix<Real, Space> input;
  RowDraws<Space> draws;
  Maps maps;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Row<Real> row = row_of(input, t);
    for (Index i = 0; i < row.size; ++i) row[i] = Real(x(t, i));
    maps.apply(Team{}, row, draws.row(t, Purpose::jitter));
  }
};

/// The gradient of a token's input, added to dx.
template <class T, class Real, class Space, class Maps>
struct InputGradientRow {
  Matrix<const Real, Space> input;
  Matrix<Real, Space> dinput;
  Matrix<T, Space> dx;
  RowDraws<Space> draws;
  Maps maps;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Row<Real> gradient = row_of(dinput, t);
    const Row<Real> result{const_cast<Real*>(input.data()) + t * gradient.size, gradient.size};  // only read
    maps.pullback(Team{}, result, gradient, Row<Real>{}, draws.row(t, Purpose::jitter));
    for (Index i = 0; i < gradient.size; ++i) dx(t, i) += T(gradient[i]);
  }
};

template <class Real>
struct ApplyKey {
  Team team;
  Row<const Real> logits, scores;
  Row<Real> key;
  TokenFacts token;
  bool before_bias;
  template <class P>
  KOKKOS_FUNCTION void operator()(const P& policy) const {
    if (before_bias != (order_of<P>() < 0)) return;
    if constexpr (requires { policy.apply(team, logits, scores, key, token); }) {
      policy.apply(team, logits, scores, key, token);
    } else {
      policy.apply(team, logits, scores, key);
    }
  }
};

/// Logits to scores to keys. Padding gets zero scores; NaN raises the context's flag.
template <class Real, class Space, class Maps, class Scoring, class Balancer, class Keys>
struct ScoreRow {
  Matrix<Real, Space> logits, scores, keys;  // keys (T, E), where a selection of the whole batch wants them
  Vector<const std::uint8_t, Space> mask;
  Vector<const Real, Space> bias;
  RowDraws<Space> draws;
  Maps maps;
  Scoring scoring;
  Balancer balancer;
  Keys chain;
  Kokkos::View<int, typename Space::memory_space> flag;

  KOKKOS_FUNCTION void operator()(Index t) const { (*this)(t, row_of(keys, t)); }
  KOKKOS_FUNCTION void operator()(Index t, Row<Real> key) const {
    const Row<Real> z = row_of(logits, t), s = row_of(scores, t);
    const Team team;
    if (is_padding<Space>(mask, t)) {
      for (Index e = 0; e < z.size; ++e) z[e] = s[e] = key[e] = 0;
      return;
    }
    if constexpr (Maps::count > 0) maps.apply(team, z, draws.row(t, Purpose::noise));
    int nan = 0;
    for (Index e = 0; e < z.size; ++e) {
      s[e] = z[e];
      nan |= int(z[e] != z[e]);
    }
    if (nan != 0) Kokkos::atomic_or(flag.data(), int(fault_nan));
    scoring.apply(team, s);
    for (Index e = 0; e < z.size; ++e) key[e] = s[e];
    ApplyKey<Real> apply{team, {z.data, z.size}, {s.data, s.size}, key, {}, true};
    if constexpr (Keys::size > 0) {
      apply.token = draws.facts(t, Purpose::sample);
      chain.each(apply);
    }
    balancer.apply(team, Row<const Real>{bias.data(), Index(bias.extent(0))}, key);
    apply.before_bias = false;
    chain.each(apply);
  }
};

/// Raises the flag where an id names no expert; with `repair` such ids become no_expert, so that no kernel follows
/// them.
KOKKOS_INLINE_FUNCTION void check_ids(Row<ExpertId> ids, Index experts, int* flag, bool repair) {
  for (Index i = 0; i < ids.size; ++i) {
    if (ids[i] >= no_expert && ids[i] < experts) continue;
    Kokkos::atomic_or(flag, int(fault_expert_id));
    if (repair) ids[i] = no_expert;
  }
}

/// The same for all of a token's assignments, ragged or not.
template <class Real, class Space>
struct CheckIds {
  Assignments<Real, Space> assignments;
  Index experts;
  Kokkos::View<int, typename Space::memory_space> flag;
  bool repair;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index begin = assignments.begin(t);
    check_ids({assignments.expert.data() + begin, assignments.end(t) - begin}, experts, flag.data(), repair);
  }
};

/// One token's choices.
template <class Real, class Space, class Selection>
struct SelectRow {
  Assignments<Real, Space> assignments;
  Vector<const std::uint8_t, Space> mask;
  Selection selection;
  RowDraws<Space> draws;
  Kokkos::View<int, typename Space::memory_space> flag;

  KOKKOS_FUNCTION void operator()(Index t, Row<Real> key) const {
    const Row<ExpertId> chosen{assignments.expert.data() + assignments.begin(t), assignments.uniform_k};
    if (is_padding<Space>(mask, t)) {
      for (Index i = 0; i < chosen.size; ++i) chosen[i] = no_expert;
      return;
    }
    if constexpr (requires { selection.select(Team{}, key, chosen, TokenFacts{}); }) {
      selection.select(Team{}, key, chosen, draws.facts(t, Purpose::sample));
    } else {
      selection.select(Team{}, key, chosen);
    }
    check_ids(chosen, key.size, flag.data(), true);
  }
};

/// A selection that weighs its choices itself; see sparse_mixer.hpp.
template <class P>
concept WeighingSelection = requires(const P p, Team team, Row<const float> scores, Row<const ExpertId> chosen,
                                     Row<float> row, TokenFacts token) {
  p.weigh(team, scores, chosen, row, token);
};

/// What the weightings start from: the scores of a token's choices, or what the selection gives them.
template <class Real, class Selection>
KOKKOS_FUNCTION void first_weights(const Selection& selection, Row<const Real> scores, Row<const ExpertId> chosen,
                                   Row<Real> weights, const TokenFacts& token) {
  if constexpr (WeighingSelection<Selection>) {
    selection.weigh(Team{}, scores, chosen, weights, token);
  } else {
    for (Index i = 0; i < weights.size; ++i) weights[i] = chosen[i] == no_expert ? Real(0) : scores[chosen[i]];
  }
}

template <class Real>
struct KeepChoices {
  Row<const Real> weights;
  Row<std::uint8_t> live;
  TokenFacts token;
  template <class P>
  KOKKOS_FUNCTION void operator()(const P& policy) const {
    policy.keep(Team{}, weights, live, token);
  }
};

/// The weights of a token's choices, and which of them are skipped.
template <class Real, class Space, class Selection, class Weightings, class Skips>
struct WeighRow {
  Matrix<Real, Space> scores;
  Assignments<Real, Space> assignments;
  RowDraws<Space> draws;
  Selection selection;
  Weightings chain;
  WeightingRows<const Real, Weightings::size> parameters;
  Skips skips;

  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index begin = assignments.begin(t), size = assignments.end(t) - begin;
    const Row<Real> weights{assignments.weight.data() + begin, size}, s = row_of(scores, t);
    const Row<const ExpertId> chosen{assignments.expert.data() + begin, size};
    TokenFacts token;
    if constexpr (WeighingSelection<Selection> || Skips::size > 0) token = draws.facts(t, Purpose::sample);
    first_weights(selection, Row<const Real>{s.data, s.size}, chosen, weights, token);
    apply_weightings(chain, Team{}, weights, chosen, parameters);
    if constexpr (Skips::size > 0) {
      const Row<std::uint8_t> live{assignments.live.data() + begin, size};
      for (Index i = 0; i < size; ++i) live[i] = 1;
      skips.each(KeepChoices<Real>{{weights.data, size}, live, token});
    }
  }
};

/// All of a token's routing, for a chunk of tokens that share one row of keys.
template <class Real, class Score, class Select, class Weigh, class Keys>
struct RouteChunk {
  Score score;
  Select select;
  Weigh weigh;
  Keys keys;  // (chunks, E)
  Index chunk, tokens;
  KOKKOS_FUNCTION void operator()(Index c) const {
    const Row<Real> key = row_of(keys, c);
    const Index last = (c + 1) * chunk < tokens ? (c + 1) * chunk : tokens;
    for (Index t = c * chunk; t < last; ++t) {
      score(t, key);
      select(t, key);
      weigh(t);
    }
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

  KOKKOS_FUNCTION void token(Index t, const WeightingRows<Real, Weightings::size>& dparameters) const {
    const Row<Real> dz = row_of(gradients.dlogits, t), ds = row_of(gradients.dscores, t), s = row_of(routing.scores, t),
                    z = row_of(routing.logits, t);
    const Row<const Real> scores{s.data, s.size};
    if (is_padding<Space>(mask, t)) {
      for (Index e = 0; e < dz.size; ++e) dz[e] = 0;
      return;
    }
    const auto& assignments = routing.assignments;
    const Index begin = assignments.begin(t), size = assignments.end(t) - begin;
    const Row<Real> gradient{dchosen.data() + begin, size}, first{work.data() + begin, size};
    const Row<const ExpertId> chosen{assignments.expert.data() + begin, size};
    TokenFacts facts;
    if constexpr (WeighingSelection<Selection>) facts = draws.facts(t, Purpose::sample);
    for (Index i = 0; i < size; ++i) gradient[i] = chosen[i] == no_expert ? Real(0) : gradients.dweight(begin + i);
    first_weights(selection, scores, chosen, first, facts);
    pull_weightings(chain, Team{}, Work{work, begin, size}, chosen, parameters, gradient, dparameters);
    if constexpr (WeighingSelection<Selection>) {
      selection.weigh_pullback(Team{}, scores, chosen, Row<const Real>{gradient.data, size}, ds, facts);
    } else {
      for (Index i = 0; i < size; ++i) {
        if (chosen[i] != no_expert) ds[chosen[i]] += gradient[i];
      }
    }
    scoring.pullback(Team{}, scores, ds);
    for (Index e = 0; e < dz.size; ++e) dz[e] += ds[e];
    if constexpr (Maps::count > 0) {
      const Row<Real> rows{maps_work.data() + t * Index(maps_work.extent(1)), Index(maps_work.extent(1))};
      if constexpr (Maps::count > 1) {
        for (Index e = 0; e < dz.size; ++e) rows[e] = routing.raw_logits(t, e);
      }
      maps.pullback(Team{}, z, dz, rows, draws.row(t, Purpose::noise));
    }
  }

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
    for (Index t = c * chunk; t < last; ++t) token(t, dparameters);
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
    Index total = 0;
    for (Index e = 0; e < experts; ++e) total += counts(e);
    const double mean = double(total) / double(experts), even = double(tokens(0)) / double(experts);
    for (Index e = 0; e < experts; ++e) {
      if constexpr (requires { balancer.step(bias(e), mean, mean, even); }) {
        bias(e) = balancer.step(bias(e), double(counts(e)), mean, even);
      } else {
        bias(e) = balancer.step(bias(e), double(counts(e)), mean);
      }
    }
  }
};

}  // namespace detail

MOE_NAMESPACE_END
