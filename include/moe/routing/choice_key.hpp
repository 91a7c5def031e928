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
/// `static constexpr int order = 1` puts it behind the others.

#include "moe/core/types.hpp"
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

/// Only the experts of the `kept` best of `groups` equal groups can be chosen; the others' keys become -infinity (0
/// would win against negative keys). `GroupLimit<>` takes both numbers at run time. At most 64 groups.
template <int fixed_groups = 0, int fixed_kept = 0, class GroupScore = Max>
struct GroupLimit {
  using policy = kind::choice_key;
  static constexpr int order = 1;  // group scores see the balancing bias

  int groups = fixed_groups == 0 ? 1 : fixed_groups;
  int kept = fixed_kept == 0 ? 1 : fixed_kept;

  void check(const RouterShape& shape) const {
    using detail::require;
    require<ConfigError>(groups > 0 && groups <= 64, "moe::GroupLimit: ", groups, " groups; 1 to 64 work.");
    require<ConfigError>(kept > 0 && kept <= groups, "moe::GroupLimit: cannot keep ", kept, " of ", groups, " groups.");
    require<ConfigError>(shape.experts % groups == 0, "moe::GroupLimit: ", shape.experts,
                         " experts do not divide into ", groups, " groups.");
    require<ConfigError>(shape.experts / groups >= GroupScore::experts_needed, "moe::GroupLimit: BestTwo needs two ",
                         "experts a group, but ", shape.experts, " experts in ", groups, " groups leave one.");
  }

  /// The most experts a token can choose.
  Index choices(Index experts) const { return experts / groups * kept; }

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<const Real>, Row<const Real>, Row<Real> key) const {
    const Index size = key.size / groups;
    std::uint64_t open = 0;
    for (int i = 0; i < kept; ++i) {
      int best = -1;
      Real best_score = 0;
      for (int g = 0; g < groups; ++g) {
        if (open >> g & 1u) continue;
        const Real score = group_score(key.data + g * size, size);
        if (best < 0 || score > best_score) best = g, best_score = score;
      }
      open |= std::uint64_t(1) << best;
    }
    team.each(key.size, [&](Index e) {
      if (!(open >> (e / size) & 1u)) key[e] = -Kokkos::Experimental::infinity_v<Real>;
    });
  }

 private:
  template <class Real>
  KOKKOS_FUNCTION static Real group_score(const Real* key, Index size) {
    Real first = -Kokkos::Experimental::infinity_v<Real>, second = first;
    for (Index i = 0; i < size; ++i) {
      const Real value = key[i];
      if (value > first) {
        second = first;
        first = value;
      } else if (value > second) {
        second = value;
      }
    }
    return GroupScore::experts_needed == 2 ? first + second : first;
  }
};

/// A bias on each expert's score, for the choice alone; after each optimiser step it moves by `rate` towards equal
/// load (Wang et al. 2024, "Auxiliary-loss-free load balancing"; DeepSeek-V3, eq. 16: rate 1e-3).
///
/// A balancer is a struct with `using policy = moe::kind::balancer;`, `apply` and `step` as here. The bias is the
/// router's buffer: saved with the model, trained by no gradient.
struct BiasBalancer {
  using policy = kind::balancer;
  double rate = 1e-3;

  template <class Real>
  KOKKOS_FUNCTION void apply(const Team& team, Row<const Real> bias, Row<Real> key) const {
    team.each(key.size, [&](Index e) { key[e] += bias[e]; });
  }
  /// The bias of an expert that got `load` assignments where the mean is `mean`.
  template <class Real>
  KOKKOS_FUNCTION Real step(Real bias, double load, double mean) const {
    return load == mean ? bias : bias + Real(load < mean ? rate : -rate);
  }
};

MOE_NAMESPACE_END
