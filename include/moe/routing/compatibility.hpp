#pragma once
/// @file
/// Which router policies go together, and the sentence for each pair that does not.
///
/// Policies say about themselves what others must know, as `static constexpr bool` members; custom ones may too:
///
///     probabilities   scoring: scores of a token are positive and sum to one
///     logits          scoring: scores are the logits, of any sign
///     constant        logit source: all logits are equal
///     needs_probabilities, needs_logits   selection or weighting: what the scores must be
///     divides_by_sum  weighting: it divides by a sum, which must not be near zero
///     free_count      selection: tokens get as many experts as they need
///     needs_free_count   balancer: it moves how many that are
///     ignores_keys    selection: it looks at no score
///     ranks_choices   skipping: it takes a token's first choice for its best
///     unranked        selection: a token's choices are in no order of merit

#include "moe/core/policy.hpp"

MOE_NAMESPACE_BEGIN

namespace detail {

// A macro, because a member's name cannot be a template argument.
#define MOE_SAYS(member)                     \
  template <class P>                         \
  constexpr bool says_##member() {           \
    if constexpr (requires { P::member; }) { \
      return P::member;                      \
    } else {                                 \
      return false;                          \
    }                                        \
  }
MOE_SAYS(probabilities)
MOE_SAYS(logits)
MOE_SAYS(constant)
MOE_SAYS(needs_probabilities)
MOE_SAYS(needs_logits)
MOE_SAYS(divides_by_sum)
MOE_SAYS(free_count)
MOE_SAYS(needs_free_count)
MOE_SAYS(ignores_keys)
MOE_SAYS(ranks_choices)
MOE_SAYS(unranked)
MOE_SAYS(takes_all)
#undef MOE_SAYS

/// Does a weighting of this chain turn logits into weights before sums are taken?
template <class... Policies>
inline constexpr bool weighs_logits = ((is_kind<Policies, kind::weighting> && says_needs_logits<Policies>()) || ...);

// Each rule stands in a helper templated on the two offenders, whose names the compiler then prints.

template <class Policy, class Scoring>
struct CheckScores {
  static_assert(!says_needs_probabilities<Policy>() || says_probabilities<Scoring>(),
                "moe::Router: this selection adds up probabilities, but these scores do not sum to one. Use Softmax.");
  static_assert(!says_needs_logits<Policy>() || says_logits<Scoring>(),
                "moe::Router: this policy works on logits, but these scores are something else already. Use Identity "
                "scoring, or a weighting of scores such as NormalizeSum.");
};

template <class Weighting, class Scoring, bool weighed>
struct CheckSum {
  static_assert(!says_divides_by_sum<Weighting>() || !says_logits<Scoring>() || weighed,
                "moe::Router: this weighting divides by a sum, and a sum of logits may be zero. Use Softmax or "
                "Sigmoid scores, or put SoftmaxOfChosen or SigmoidOfChosen before it.");
};

template <class Policy, class Selection>
struct CheckSelection {
  static_assert(!says_needs_free_count<Policy>() || says_free_count<Selection>(),
                "moe::Router: this balancer moves how many experts a token gets, but this selection always takes the "
                "same number. Use Threshold, or BiasBalancer.");
  static_assert(!(is_kind<Policy, kind::balancer, kind::choice_key> && says_ignores_keys<Selection>()),
                "moe::Router: this policy changes keys, but this selection reads a table and looks at none. Drop one "
                "of the two.");
  static_assert(!(is_kind<Policy, kind::balancer> && says_needs_logits<Selection>()),
                "moe::Router: this selection weighs what it compares, so a balancing bias would change the weights. "
                "Use TopK, or balance by a loss.");
  static_assert(!(says_constant<Policy>() && !says_ignores_keys<Selection>() && !says_takes_all<Selection>()),
                "moe::Router: all logits are equal, so this selection has nothing to go by. Use TableLookup, or "
                "another logit source.");
};

template <class Skipping, class Selection, bool by_token>
struct CheckSkipping {
  static_assert(!says_ranks_choices<Skipping>() || (by_token && !says_unranked<Selection>()),
                "moe::Router: this skipping compares a token's choices with its first, but this selection ranks none. "
                "Use a token's own choice such as TopK.");
};

/// All rules for one policy of a router.
template <class Policy, class Scoring, class Selection, bool weighed, bool by_token>
struct CheckCompatible {
  static constexpr std::size_t size =
      sizeof(CheckScores<Policy, Scoring>) + sizeof(CheckSum<Policy, Scoring, weighed>) +
      sizeof(CheckSelection<Policy, Selection>) + sizeof(CheckSkipping<Policy, Selection, by_token>);
};

}  // namespace detail

MOE_NAMESPACE_END
