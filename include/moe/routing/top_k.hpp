#pragma once
/// @file
/// Token choice: each token takes its K best experts.
///
/// A selection of this sort is a struct with `using policy = moe::kind::selection;` and
///
///     Index choices() const;  // K, at most E
///     template <class Real>
///     KOKKOS_FUNCTION void select(const Team&, Row<Real> key, Row<ExpertId> chosen) const;
///
/// `key` may be changed; `chosen` holds K entries, no_expert where nothing is left. Selections that look at many
/// tokens at once have another contract: see expert_choice.hpp.

#include "moe/routing/routing.hpp"

MOE_NAMESPACE_BEGIN

/// The K largest keys in descending order; of equal keys the lowest expert first; keys of -infinity are never
/// chosen. `TopK<>` takes K at run time.
template <int fixed_k = 0>
struct TopK {
  using policy = kind::selection;
  int k = fixed_k == 0 ? 2 : fixed_k;

  Index choices() const { return k; }

  void check(const RouterShape& shape) const {
    detail::require<ConfigError>(k > 0 && k <= shape.experts, "moe::TopK: cannot choose ", k, " of ", shape.experts,
                                 " experts. Choose 1 to ", shape.experts, ".");
  }

  template <class Real>
  KOKKOS_FUNCTION void select(const Team&, Row<Real> key, Row<ExpertId> chosen) const {
    const Real nothing = -Kokkos::Experimental::infinity_v<Real>;
    for (Index i = 0; i < chosen.size; ++i) {
      Index best = no_expert;
      Real best_key = nothing;
      for (Index e = 0; e < key.size; ++e) {
        if (key[e] > best_key) {
          best = e;
          best_key = key[e];
        }
      }
      chosen[i] = ExpertId(best);
      if (best != no_expert) key[best] = nothing;
    }
  }
};

MOE_NAMESPACE_END
