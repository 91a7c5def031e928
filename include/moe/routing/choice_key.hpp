#pragma once
/// @file
/// Choice keys: they change what the selection compares, and never a weight. No gradient flows through them
/// (selection is piecewise constant).
///
/// A choice key is a struct with `using policy = moe::kind::choice_key;` and
///
///     template <class Real>
///     KOKKOS_FUNCTION void apply(const Team&, Row<const Real> logits, Row<const Real> scores, Row<Real> key) const;
///
/// or the same with a `const TokenFacts&` behind it. `static constexpr int order = -1` puts it before the balancing
/// bias, 0 (the default) behind that, 1 behind all others. `takes_team`: see scoring.hpp.

#include "moe/core/lanes.hpp"
#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// Group score: the best key of the group (DeepSeek-V2, section 2.2.2).
struct Max {
  static constexpr int experts_needed = 1;
};
/// Group score: the sum of the two best keys of the group (DeepSeek-V3, section 2.1.2).
struct BestTwo {
  static constexpr int experts_needed = 2;
};

/// What the keys of closed groups become: -infinity, so that they are never chosen; or 0, as in DeepSeek-V2's, Mistral
/// 4's and A.X-K2's code, where they win against negative keys and fill up a token with too few positive ones.
struct NegativeInfinity {
  template <class Real>
  KOKKOS_FUNCTION static Real value() {
    return -Kokkos::Experimental::infinity_v<Real>;
  }
};
struct Zero {
  template <class Real>
  KOKKOS_FUNCTION static Real value() {
    return 0;
  }
};

/// Only the experts of the `kept` best of `groups` equal groups can be chosen. With groups as devices this is
/// DeepSeek-V2's device-limited routing. `GroupLimit<>` takes both numbers at run time. At most 64 groups.
template <int fixed_groups = 0, int fixed_kept = 0, class GroupScore = Max, class Fill = NegativeInfinity>
struct GroupLimit {
  using policy = kind::choice_key;
  static constexpr bool takes_team = true;
  static constexpr int order = 1;  // group scores see the balancing bias

  int groups = fixed_groups == 0 ? 1 : fixed_groups;
  int kept = fixed_kept == 0 ? 1 : fixed_kept;

  void check(const RouterShape& shape) const {
    using detail::require;
    require<ConfigError>(groups > 0 && groups <= most_groups, "moe::GroupLimit: ", groups, " groups; 1 to 64 work.");
    require<ConfigError>(kept > 0 && kept <= groups, "moe::GroupLimit: cannot keep ", kept, " of ", groups, " groups.");
    require<ConfigError>(shape.experts % groups == 0, "moe::GroupLimit: ", shape.experts,
                         " experts do not divide into ", groups, " groups.");
    require<ConfigError>(shape.experts / groups >= GroupScore::experts_needed, "moe::GroupLimit: BestTwo needs two ",
                         "experts a group, but ", shape.experts, " experts in ", groups, " groups leave one.");
  }

  /// The most experts a token can choose.
  Index choices(Index experts) const {
    return std::is_same_v<Fill, NegativeInfinity> ? experts / groups * kept : experts;
  }

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<const Real>, Row<const Real>, Row<Real> key) const {
    if (team.is_shared()) return apply_by_lanes(team, key);
    const Index size = key.size / groups;
    Real scores[most_groups];
    int better[most_groups];  // how many groups come before this one
    for (int g = 0; g < groups; ++g) {
      scores[g] = group_score(team, Row<const Real>{key.data + g * size, size});
      better[g] = 0;
    }
    for (int h = 0; h < groups; ++h) {
      for (int g = 0; g < groups; ++g) better[g] += comes_before(scores[h], h, scores[g], g);
    }
    for (int g = 0; g < groups; ++g) {
      if (better[g] < kept) continue;
      team.each(size, [&](Index e) { key[g * size + e] = Fill::template value<Real>(); });
    }
  }

 private:
  static constexpr int most_groups = 64;
  static_assert(most_groups == 2 * detail::device_lanes);

  /// 1 or 0, without a branch.
  template <class Real>
  KOKKOS_FUNCTION static int comes_before(Real score, int h, Real than, int g) {
    return int(score > than) | (int(score == than) & int(h < g));
  }

  /// The same by lanes: each keeps two groups' scores, those of its number and of 32 more, so that none lie in memory.
  template <class Real>
  KOKKOS_FUNCTION void apply_by_lanes(const Team& team, Row<Real> key) const {
    const Index size = key.size / groups;
    const int lanes = team.lanes, lane = team.lane();
    Real low = 0, high = 0;
    for (int g = 0; g < groups; ++g) {
      const Real score = group_score(team, Row<const Real>{key.data + g * size, size});
      if (g == lane) low = score;
      if (g == lane + lanes) high = score;
    }
    int better_low = 0, better_high = 0;
    for (int h = 0; h < groups; ++h) {
      const Real score = team.shuffle(h < lanes ? low : high, h % lanes);
      better_low += comes_before(score, h, low, lane);
      better_high += comes_before(score, h, high, lane + lanes);
    }
    for (int g = 0; g < groups; ++g) {
      if (team.shuffle(g < lanes ? better_low : better_high, g % lanes) < kept) continue;
      team.each(size, [&](Index e) { key[g * size + e] = Fill::template value<Real>(); });
    }
  }

  template <class Real>
  KOKKOS_FUNCTION static Real group_score(const Team& team, Row<const Real> key) {
    if constexpr (GroupScore::experts_needed == 1) {
      return detail::row_max(team, key);
    } else {
      Real first, second;
      detail::row_largest_two(team, key, first, second);
      const Real sum = first + second;
      return sum == sum ? sum : -Kokkos::Experimental::infinity_v<Real>;  // infinity - infinity
    }
  }
};

/// Choices compare logits, not scores (Kolibri adds its bias to logits; softmax or sigmoid alone keep the order).
struct ChooseByLogits {
  using policy = kind::choice_key;
  static constexpr bool takes_team = true;
  static constexpr int order = -1;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<const Real> logits, Row<const Real>, Row<Real> key) const {
    team.each(key.size, [&](Index e) { key[e] = logits[e]; });
  }
};

/// While training, choices are sampled without replacement from softmax(logits / temperature): keys become logits plus
/// Gumbel noise (Kool et al. 2019, "Stochastic beams and where to find them"). Weights stay the scores'.
struct GumbelSampling {
  using policy = kind::choice_key;
  static constexpr bool takes_team = true;
  static constexpr int order = -1;
  double temperature = 1;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<const Real> logits, Row<const Real>, Row<Real> key,
                             const TokenFacts& token) const {
    if (!token.random.active) return;
    team.each(key.size, [&](Index e) { key[e] = logits[e] + Real(temperature) * token.random.gumbel<Real>(e); });
  }
};

/// While training, each expert is out of a token's reach with this probability (SiRA; SwitchHead).
struct ExpertDropout {
  using policy = kind::choice_key;
  static constexpr bool takes_team = true;
  static constexpr int order = 1;
  double probability = 0.1;

  void check(const RouterShape&) const {
    detail::require<ConfigError>(probability >= 0 && probability < 1, "moe::ExpertDropout: probability is ",
                                 probability, "; it must be at least 0 and below 1.");
  }

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<const Real>, Row<const Real>, Row<Real> key,
                             const TokenFacts& token) const {
    if (!token.random.active) return;
    const RowRandom random = token.random.of(Purpose::dropout);
    team.each(key.size, [&](Index e) {
      if (double(random.uniform<float>(e)) < probability) key[e] = -Kokkos::Experimental::infinity_v<Real>;
    });
  }
};

MOE_NAMESPACE_END
