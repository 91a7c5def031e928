#pragma once
/// @file
/// The router's kernels of the forward pass: one token's row each, by the team they are given.

#include "moe/core/each_row.hpp"
#include "moe/core/policy.hpp"
#include "moe/routing/detail/weighting_chain.hpp"
#include "moe/routing/noise.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

struct NoBalancer {};

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
  static constexpr bool takes_team = true;
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
  static constexpr bool takes_team = (!here || detail::takes_team<First>()) && Next::takes_team;
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
      team.each(mine.size, [&](Index e) { behind[e] = mine[e]; });
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
  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    const Row<Real> row = row_of(input, t);
    const Row<const T> from = row_of(x, t);
    team.each(row.size, [&](Index i) { row[i] = Real(from[i]); });
    maps.apply(team, row, draws.row(t, Purpose::jitter));
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
template <class Real, class Space, class Maps, class Scoring, bool biased, class Keys>
struct ScoreRow {
  Matrix<Real, Space> logits, scores, keys;  // keys (T, E), where a selection of the whole batch wants them
  Vector<const std::uint8_t, Space> mask;
  Vector<const Real, Space> bias;
  RowDraws<Space> draws;
  Maps maps;
  Scoring scoring;
  Keys chain;
  Kokkos::View<int, typename Space::memory_space> flag;

  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const {
    (*this)(t, team, row_of(keys, t), row_of(scores, t));
  }
  /// `s` is where the scores are made: the token's row of them, or one nearby, from which they are copied.
  KOKKOS_FUNCTION void operator()(Index t, const Team& team, Row<Real> key, Row<Real> s) const {
    const Row<Real> z = row_of(logits, t), result = row_of(scores, t);
    if (is_padding<Space>(mask, t)) {
      team.each(z.size, [&](Index e) { z[e] = result[e] = key[e] = 0; });
      return;
    }
    if constexpr (Maps::count > 0) maps.apply(team, z, draws.row(t, Purpose::noise));
    int nan = 0;  // among this lane's
    team.each(z.size, [&](Index e) {
      s[e] = z[e];
      nan |= int(z[e] != z[e]);
    });
    if (nan != 0) Kokkos::atomic_or(flag.data(), int(fault_nan));
    scoring.apply(team, s);
    if (s.data == result.data) {
      team.each(z.size, [&](Index e) { key[e] = s[e]; });
    } else {
      team.each(z.size, [&](Index e) { key[e] = result[e] = s[e]; });
    }
    ApplyKey<Real> apply{team, {z.data, z.size}, {s.data, s.size}, key, {}, true};
    if constexpr (Keys::size > 0) {
      apply.token = draws.facts(t, Purpose::sample);
      chain.each(apply);
    }
    if constexpr (biased) team.each(key.size, [&](Index e) { key[e] += bias(e); });
    apply.before_bias = false;
    chain.each(apply);
  }
};

/// Raises the flag where an id names no expert; with `repair` such ids become no_expert, so that no kernel follows
/// them.
KOKKOS_INLINE_FUNCTION void check_ids(const Team& team, Row<ExpertId> ids, Index experts, int* flag, bool repair) {
  team.each(ids.size, [&](Index i) {
    if (ids[i] >= no_expert && ids[i] < experts) return;
    Kokkos::atomic_or(flag, int(fault_expert_id));
    if (repair) ids[i] = no_expert;
  });
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
    check_ids(Team{}, {assignments.expert.data() + begin, assignments.end(t) - begin}, experts, flag.data(), repair);
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

  KOKKOS_FUNCTION void operator()(Index t, const Team& team, Row<Real> key) const {
    const Row<ExpertId> chosen{assignments.expert.data() + assignments.begin(t), assignments.uniform_k};
    if (is_padding<Space>(mask, t)) {
      team.each(chosen.size, [&](Index i) { chosen[i] = no_expert; });
      return;
    }
    if constexpr (requires { selection.select(team, key, chosen, TokenFacts{}); }) {
      selection.select(team, key, chosen, draws.facts(t, Purpose::sample));
    } else {
      selection.select(team, key, chosen);
    }
    check_ids(team, chosen, key.size, flag.data(), true);
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
KOKKOS_FUNCTION void first_weights(const Selection& selection, const Team& team, Row<const Real> scores,
                                   Row<const ExpertId> chosen, Row<Real> weights, const TokenFacts& token) {
  if constexpr (WeighingSelection<Selection>) {
    selection.weigh(team, scores, chosen, weights, token);
  } else {
    team.each(weights.size, [&](Index i) { weights[i] = chosen[i] == no_expert ? Real(0) : scores[chosen[i]]; });
  }
}

template <class Real>
struct KeepChoices {
  Team team;
  Row<const Real> weights;
  Row<std::uint8_t> live;
  TokenFacts token;
  template <class P>
  KOKKOS_FUNCTION void operator()(const P& policy) const {
    policy.keep(team, weights, live, token);
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

  KOKKOS_FUNCTION void operator()(Index t, const Team& team) const { (*this)(t, team, row_of(scores, t)); }
  KOKKOS_FUNCTION void operator()(Index t, const Team& team, Row<Real> s) const {
    const Index begin = assignments.begin(t), size = assignments.end(t) - begin;
    const Row<Real> weights{assignments.weight.data() + begin, size};
    const Row<const ExpertId> chosen{assignments.expert.data() + begin, size};
    TokenFacts token;
    if constexpr (WeighingSelection<Selection> || Skips::size > 0) token = draws.facts(t, Purpose::sample);
    first_weights(selection, team, Row<const Real>{s.data, s.size}, chosen, weights, token);
    apply_weightings(chain, team, weights, chosen, parameters);
    if constexpr (Skips::size > 0) {
      const Row<std::uint8_t> live{assignments.live.data() + begin, size};
      team.each(size, [&](Index i) { live[i] = 1; });
      skips.each(KeepChoices<Real>{team, {weights.data, size}, live, token});
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
      score(t, Team{}, key, row_of(score.scores, t));
      select(t, Team{}, key);
      weigh(t, Team{});
    }
  }
};

/// The same for devices: a warp a token. Keys, and scores while they are made, lie in the team's own memory.
template <class Space, class Real, class Score, class Select, class Weigh>
struct RouteToken {
  Score score;
  Select select;
  Weigh weigh;
  Matrix<Real, Space> keys;  // (T, E) where they do not fit there, else empty
  Index tokens;

  using Member = typename Kokkos::TeamPolicy<Space>::member_type;
  static constexpr std::size_t most_bytes = 8192;  // a token: four share 32 KiB

  /// The team's own memory for a token, or 0 where that is too little.
  static std::size_t bytes(Index experts) {
    const std::size_t needed = (2 * std::size_t(experts) * sizeof(Real) + 15) / 16 * 16;
    return needed <= most_bytes ? needed : 0;
  }
  KOKKOS_FUNCTION void operator()(const Member& member) const {
    const Index t = Index(member.league_rank()) * member.team_size() + member.team_rank();
    const Index experts = score.logits.extent(1);
    if (t >= tokens) return;
    if (keys.data() != nullptr) {
      route(t, team_of(member), row_of(keys, t), row_of(score.scores, t));
    } else {
      auto* own =
          static_cast<Real*>(member.thread_scratch(0).get_shmem_aligned(2 * experts * sizeof(Real), alignof(Real)));
      route(t, team_of(member), {own, experts}, {own + experts, experts});
    }
  }
  KOKKOS_FUNCTION void route(Index t, const Team& team, Row<Real> key, Row<Real> s) const {
    score(t, team, key, s);
    select(t, team, key);
    weigh(t, team, s);
  }
};

}  // namespace detail

MOE_NAMESPACE_END
