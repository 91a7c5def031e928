#pragma once
/// @file
/// The router's kernels: one token's row each.

#include "moe/core/policy.hpp"
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

/// Random draws of a batch; row(t) gives those of one token.
struct RowDraws {
  RandomKey key;
  Index first_token = 0;
  bool active = false;
  KOKKOS_FUNCTION RowRandom row(Index token) const { return {key, first_token + token, active}; }
};

/// The row maps of a chain that act at one place, in order; their pullbacks in reverse.
template <MapPlace place, class Maps>
struct RowMaps;
template <MapPlace place>
struct RowMaps<place, Chain<>> {
  static constexpr bool any = false;
  Chain<> maps;
  template <class Real>
  KOKKOS_FUNCTION void apply(const Team&, Row<Real>, const RowRandom&) const {}
  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team&, Row<const Real>, Row<Real>, const RowRandom&) const {}
};
template <MapPlace place, class First, class... Rest>
struct RowMaps<place, Chain<First, Rest...>> {
  using Next = RowMaps<place, Chain<Rest...>>;
  static constexpr bool here = First::place == place;
  static constexpr bool any = here || Next::any;
  static_assert(!here || !Next::any, "moe::Router: two row maps act at one place; write them as one.");
  Chain<First, Rest...> maps;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<Real> row, const RowRandom& random) const {
    if constexpr (here) maps.first.apply(team, row, random);
    Next{maps.rest}.apply(team, row, random);
  }
  template <class Real>
  KOKKOS_FUNCTION void pullback(const Team& team, Row<const Real> result, Row<Real> gradient,
                                const RowRandom& random) const {
    Next{maps.rest}.pullback(team, result, gradient, random);
    if constexpr (here) maps.first.pullback(team, result, gradient, random);
  }
};

/// A token's input in the router's precision, with input maps.
template <class T, class Real, class Space, class Maps>
struct InputRow {
  Matrix<const T, Space> x;
  Matrix<Real, Space> input;
  RowDraws draws;
  Maps maps;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Row<Real> row = row_of(input, t);
    for (Index i = 0; i < row.size; ++i) row[i] = Real(x(t, i));
    maps.apply(Team{}, row, draws.row(t));
  }
};

/// The gradient of a token's input, added to dx.
template <class T, class Real, class Space, class Maps>
struct InputGradientRow {
  Matrix<const Real, Space> input;
  Matrix<Real, Space> dinput;
  Matrix<T, Space> dx;
  RowDraws draws;
  Maps maps;
  KOKKOS_FUNCTION void operator()(Index t) const {
    const Row<Real> gradient = row_of(dinput, t);
    maps.pullback(Team{}, row_of(input, t), gradient, draws.row(t));
    for (Index i = 0; i < gradient.size; ++i) dx(t, i) += T(gradient[i]);
  }
};

template <class Real>
struct ApplyKey {
  Team team;
  Row<const Real> logits, scores;
  Row<Real> key;
  template <class P>
  KOKKOS_FUNCTION void operator()(const P& policy) const {
    policy.apply(team, logits, scores, key);
  }
};

/// Logits to scores to keys. Padding gets zero scores; NaN raises the context's flag.
template <class Real, class Space, class Maps, class Scoring, class Balancer, class Keys>
struct ScoreRow {
  Matrix<Real, Space> logits, scores, keys;
  Vector<const std::uint8_t, Space> mask;
  Vector<const Real, Space> bias;
  RowDraws draws;
  Maps maps;
  Scoring scoring;
  Balancer balancer;
  Keys chain;
  Kokkos::View<int, typename Space::memory_space> flag;

  KOKKOS_FUNCTION void operator()(Index t) const {
    const Row<Real> z = row_of(logits, t), s = row_of(scores, t), key = row_of(keys, t);
    const Team team;
    if (is_padding<Space>(mask, t)) {
      for (Index e = 0; e < z.size; ++e) z[e] = s[e] = key[e] = 0;
      return;
    }
    maps.apply(team, z, draws.row(t));
    bool nan = false;
    for (Index e = 0; e < z.size; ++e) {
      s[e] = z[e];
      nan = nan || z[e] != z[e];
    }
    if (nan) Kokkos::atomic_or(flag.data(), int(fault_nan));
    scoring.apply(team, s);
    for (Index e = 0; e < z.size; ++e) key[e] = s[e];
    balancer.apply(team, Row<const Real>{bias.data(), Index(bias.extent(0))}, key);
    chain.each(ApplyKey<Real>{team, {z.data, z.size}, {s.data, s.size}, key});
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
  Matrix<Real, Space> keys;
  Assignments<Real, Space> assignments;
  Vector<const std::uint8_t, Space> mask;
  Selection selection;
  Kokkos::View<int, typename Space::memory_space> flag;

  KOKKOS_FUNCTION void operator()(Index t) const {
    const Row<ExpertId> chosen{assignments.expert.data() + assignments.begin(t), assignments.uniform_k};
    if (is_padding<Space>(mask, t)) {
      for (Index i = 0; i < chosen.size; ++i) chosen[i] = no_expert;
      return;
    }
    selection.select(Team{}, row_of(keys, t), chosen);
    check_ids(chosen, Index(keys.extent(1)), flag.data(), true);
  }
};

template <class Real>
struct ApplyWeighting {
  Team team;
  Row<Real> weights;
  template <class P>
  KOKKOS_FUNCTION void operator()(const P& policy) const {
    policy.apply(team, weights);
  }
};

/// The scores of a token's choices, through the chain of weightings.
template <class Real, class Space, class Weightings>
struct WeighRow {
  Matrix<Real, Space> scores;
  Assignments<Real, Space> assignments;
  Weightings chain;

  KOKKOS_FUNCTION void operator()(Index t) const {
    const Index begin = assignments.begin(t), size = assignments.end(t) - begin;
    const Row<Real> weights{assignments.weight.data() + begin, size};
    for (Index i = 0; i < size; ++i) {
      const ExpertId e = assignments.expert(begin + i);
      weights[i] = e == no_expert ? Real(0) : scores(t, e);
    }
    chain.each(ApplyWeighting<Real>{Team{}, weights});
  }
};

/// Pulls the gradient of a token's weights and scores back to its logits.
template <class Real, class Space, class Maps, class Scoring, class Weightings>
struct BackwardRow {
  Matrix<Real, Space> logits, scores;
  Assignments<Real, Space> assignments;
  Vector<const Real, Space> dweight;  // (A)
  Matrix<Real, Space> work;           // (stages + 1, A): what each weighting saw
  Vector<Real, Space> dchosen;        // (A)
  Matrix<Real, Space> dscores, dlogits;
  Vector<const std::uint8_t, Space> mask;
  RowDraws draws;
  Maps maps;
  Scoring scoring;
  Weightings chain;

  KOKKOS_FUNCTION void pull(const Chain<>&, Index, Index, Row<Real>) const {}
  template <class First, class... Rest>
  KOKKOS_FUNCTION void pull(const Chain<First, Rest...>& rest, Index stage, Index begin, Row<Real> gradient) const {
    const Row<Real> before{work.data() + stage * Index(work.extent(1)) + begin, gradient.size};
    const Row<Real> after{work.data() + (stage + 1) * Index(work.extent(1)) + begin, gradient.size};
    for (Index i = 0; i < gradient.size; ++i) after[i] = before[i];
    rest.first.apply(Team{}, after);
    pull(rest.rest, stage + 1, begin, gradient);
    rest.first.pullback(Team{}, Row<const Real>{before.data, before.size}, gradient);
  }

  KOKKOS_FUNCTION void operator()(Index t) const {
    const Row<Real> dz = row_of(dlogits, t), ds = row_of(dscores, t), s = row_of(scores, t), z = row_of(logits, t);
    if (is_padding<Space>(mask, t)) {
      for (Index e = 0; e < dz.size; ++e) dz[e] = 0;
      return;
    }
    const Index begin = assignments.begin(t), size = assignments.end(t) - begin;
    const Row<Real> gradient{dchosen.data() + begin, size};
    for (Index i = 0; i < size; ++i) {
      const ExpertId e = assignments.expert(begin + i);
      gradient[i] = e == no_expert ? Real(0) : dweight(begin + i);
      work(0, begin + i) = e == no_expert ? Real(0) : scores(t, e);
    }
    pull(chain, 0, begin, gradient);
    for (Index i = 0; i < size; ++i) {
      const ExpertId e = assignments.expert(begin + i);
      if (e != no_expert) ds[e] += gradient[i];
    }
    scoring.pullback(Team{}, Row<const Real>{s.data, s.size}, ds);
    for (Index e = 0; e < dz.size; ++e) dz[e] += ds[e];
    maps.pullback(Team{}, Row<const Real>{z.data, z.size}, dz, draws.row(t));
  }
};

/// One step of the balancing bias.
template <class Real, class Space, class Balancer>
struct BalanceStep {
  Vector<Real, Space> bias;
  Vector<const Index, Space> counts;
  Balancer balancer;
  KOKKOS_FUNCTION void operator()(Index) const {
    const Index experts = bias.extent(0);
    Index total = 0;
    for (Index e = 0; e < experts; ++e) total += counts(e);
    const double mean = double(total) / double(experts);
    for (Index e = 0; e < experts; ++e) bias(e) = balancer.step(bias(e), double(counts(e)), mean);
  }
};

}  // namespace detail

MOE_NAMESPACE_END
