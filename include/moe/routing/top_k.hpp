#pragma once
/// @file
/// Token choice: each token takes its own experts.
///
/// A selection of this sort is a struct with `using policy = moe::kind::selection;` and
///
///     Index choices() const;  // K, at most E; or choices(Index experts)
///     template <class Real>
///     KOKKOS_FUNCTION void select(const Team&, Row<Real> key, Row<ExpertId> chosen) const;
///
/// or `select` with a `const TokenFacts&` behind. `key` may be changed; `chosen` holds K entries, no_expert where
/// nothing is left. `takes_team`: see scoring.hpp. Selections that look at many tokens at once have another contract:
/// see expert_choice.hpp.

#include "moe/routing/detail/largest_keys.hpp"
#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// The K largest keys in descending order; of equal keys the lowest expert first; keys of -infinity are never
/// chosen. `TopK<>` takes K at run time.
template <int fixed_k = 0>
struct TopK {
  using policy = kind::selection;
  static constexpr bool takes_team = true;
  int k = fixed_k == 0 ? 2 : fixed_k;

  Index choices() const { return k; }

  void check(const RouterShape& shape) const {
    detail::require<ConfigError>(k > 0 && k <= shape.experts, "moe::TopK: cannot choose ", k, " of ", shape.experts,
                                 " experts. Choose 1 to ", shape.experts, ".");
  }

  template <class Real>
  KOKKOS_FUNCTION void select(const Team& team, Row<Real> key, Row<ExpertId> chosen) const {
    detail::take_largest(team, key, chosen);
  }
};

/// The K largest keys of each group of neighbours: E experts are `groups` groups of E / groups, and a token makes
/// groups * K choices, group by group, each in descending order. For heads with experts of their own (SwitchHead, which
/// sets `groups`).
template <int fixed_k>
struct TopKPerGroup {
  using policy = kind::selection;
  static constexpr bool takes_team = true;
  static constexpr bool unranked = true;
  static constexpr int k = fixed_k;
  static_assert(fixed_k > 0, "moe::TopKPerGroup<k>: k is the number of choices in each group, at least 1.");
  Index groups = 1;

  Index choices() const { return groups * k; }

  void check(const RouterShape& shape) const {
    detail::require<ConfigError>(groups > 0 && shape.experts % groups == 0, "moe::TopKPerGroup: ", shape.experts,
                                 " experts do not divide into ", groups, " groups.");
    detail::require<ConfigError>(k <= shape.experts / groups, "moe::TopKPerGroup: cannot choose ", int(k), " of ",
                                 shape.experts / groups, " experts in each group. Choose 1 to ", shape.experts / groups,
                                 ".");
  }

  template <class Real>
  KOKKOS_FUNCTION void select(const Team& team, Row<Real> key, Row<ExpertId> chosen) const {
    const Index experts = key.size / groups;
    for (Index g = 0; g < groups; ++g) {
      const Row<ExpertId> own{chosen.data + g * k, k};
      detail::take_largest(team, Row<Real>{key.data + g * experts, experts}, own);
      team.each(k, [&](Index i) {
        if (own[i] != no_expert) own[i] += ExpertId(g * experts);
      });
    }
  }
};

/// The largest keys in descending order until they sum to p: at least `floor`, at most `cap` experts (Huang et al.
/// 2024, "Harder tasks need more experts"). Keys are to be probabilities: softmax scores, no balancing bias.
struct TopP {
  using policy = kind::selection;
  static constexpr bool takes_team = true;
  static constexpr bool needs_probabilities = true, free_count = true;
  double p = 0.4;
  int cap = 8;
  int floor = 1;

  Index choices() const { return cap; }

  void check(const RouterShape& shape) const {
    detail::require<ConfigError>(0 < floor && floor <= cap && cap <= shape.experts, "moe::TopP: floor ", floor,
                                 " and cap ", cap, " for ", shape.experts,
                                 " experts; it must be 1 <= floor <= cap <= E.");
    detail::require<ConfigError>(p > 0 && p <= 1, "moe::TopP: p is ", p, "; it must be above 0 and at most 1.");
  }

  template <class Real>
  KOKKOS_FUNCTION void select(const Team& team, Row<Real> key, Row<ExpertId> chosen) const {
    Real total = 0;
    for (Index i = 0; i < chosen.size; ++i) {
      const bool wanted = i < floor || !(total >= Real(p));
      const auto best = wanted ? detail::best_key(team, Row<const Real>{key.data, key.size}) : detail::BestKey<Real>{};
      if (best.expert != no_expert) total += best.key;
      detail::take(team, best.expert, i, key, chosen);
    }
  }
};

/// Every expert whose key is above the threshold, in descending order: at least `floor`, at most `cap`. With a
/// MeanCountBalancer the mean number of experts stays where it should; with a QuotaBalancer each expert's share does.
struct Threshold {
  using policy = kind::selection;
  static constexpr bool takes_team = true;
  static constexpr bool free_count = true;
  double threshold = 0;
  int cap = 8;
  int floor = 0;

  Index choices() const { return cap; }

  void check(const RouterShape& shape) const {
    detail::require<ConfigError>(0 <= floor && floor <= cap && 0 < cap && cap <= shape.experts,
                                 "moe::Threshold: floor ", floor, " and cap ", cap, " for ", shape.experts,
                                 " experts; it must be 0 <= floor <= cap <= E.");
  }

  template <class Real>
  KOKKOS_FUNCTION void select(const Team& team, Row<Real> key, Row<ExpertId> chosen) const {
    for (Index i = 0; i < chosen.size; ++i) {
      const auto best = detail::best_key(team, Row<const Real>{key.data, key.size});
      const bool wanted = i < floor || best.key > Real(threshold);
      detail::take(team, wanted ? best.expert : no_expert, i, key, chosen);
    }
  }
};

/// Every expert, in order: dense mixtures (Jacobs et al. 1991; MoLoRA's soft merging). Keys of -infinity stay out.
struct AllExperts {
  using policy = kind::selection;
  static constexpr bool takes_team = true;
  static constexpr bool unranked = true, takes_all = true;

  Index choices(Index experts) const { return experts; }

  template <class Real>
  KOKKOS_FUNCTION void select(const Team& team, Row<Real> key, Row<ExpertId> chosen) const {
    team.each(chosen.size,
              [&](Index e) { chosen[e] = key[e] > -Kokkos::Experimental::infinity_v<Real> ? ExpertId(e) : no_expert; });
  }
};

/// The last `shared` experts are chosen by every token, behind what `Selection` chooses among the others: shared
/// experts that are weighted jointly with the routed ones (Inkling).
template <class Selection, int shared>
struct WithShared : Selection {
  using policy = kind::selection;
  static constexpr Index shared_experts = shared;
  static_assert(shared > 0, "moe::WithShared<Selection, n>: n is the number of shared experts, at least 1.");

  WithShared() = default;
  explicit WithShared(const Selection& selection) : Selection(selection) {}

  Index choices() const { return Selection::choices() + shared; }

  void check(const RouterShape& shape) const {
    detail::require<ConfigError>(shape.experts > shared, "moe::WithShared: ", shared, " of ", shape.experts,
                                 " experts are shared; none is left to choose.");
    if constexpr (requires { Selection::check(shape); }) Selection::check({shape.experts - shared, shape.hidden});
  }

  template <class Real>
  KOKKOS_FUNCTION void select(const Team& team, Row<Real> key, Row<ExpertId> chosen) const {
    const Index routed = key.size - shared, own = chosen.size - shared;
    Selection::select(team, Row<Real>{key.data, routed}, Row<ExpertId>{chosen.data, own});
    team.each(shared, [&](Index i) { chosen[own + i] = ExpertId(routed + i); });
  }
};

MOE_NAMESPACE_END
