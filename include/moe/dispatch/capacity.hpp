#pragma once
/// @file
/// Capacity: how many assignments an expert takes, and which are dropped when more ask for it.
///
/// The capacities of published systems, ready to use: published_capacities.hpp.

#include "moe/core/batch.hpp"

MOE_NAMESPACE_BEGIN

/// Every assignment is kept.
struct Dropless {};
/// Experts take at most C assignments a group; the rest are dropped. Row extents follow the live rows.
struct Drop {};
/// `Drop` with fixed row extents: every expert has exactly G*C rows, the unused ones padding (row_token -1).
struct Pad {};

/// Who comes first in an expert's queue.
enum class Priority {
  position,  ///< token order, then choice order (Switch)
  choice,    ///< all first choices before all second ones, each in token order (GShard)
  score,     ///< by combine weight, largest first, whatever the choice's rank; ties by position (DeepSeek-V2)
  batch,     ///< batch priority (V-MoE, Riquelme et al. 2021): as `choice`, but tokens by the combine weight of their
             ///< first choice, largest first, ties by position. For K = 1 the same as `score`. Weights normalised
             ///< over a token's choices rank by how sure it is among them, not by its probability.
  random     ///< random token priority (DeepSpeed): as `choice`, each rank's tokens in a random order of its own, drawn
             ///< from (seed, step, layer, token, rank); in inference too
};

/// How the capacity's product becomes a whole number.
enum class Rounding {
  ceiling,
  floor,
  nearest  ///< halves to even, as Python's round
};

/// What the factor multiplies, for a group of n tokens with K choices each.
enum class Share {
  choices,      ///< C = round(factor * K * n / E)
  each_choice,  ///< C = K * round(factor * n / E) (NLLB)
  tokens        ///< C = round(factor * n / E), K left out (Mesh TensorFlow, flaxformer)
};

/// Whether the weights a token has left are scaled up, and to what sum.
enum class Renormalize {
  never,
  after_drops,  ///< to what they summed to before its drops
  to_one        ///< to one (fairscale, DeepSpeed, NLLB)
};

/// The capacity of an expert, all of it explicit. `Mode` is Dropless, Drop or Pad.
///
/// Steps of C, in this order: product, rounding, multiple, at_most_tokens, minimum.
template <class Mode = Dropless>
struct CapacityPolicy {
  using policy = kind::capacity;
  using mode = Mode;
  static constexpr bool drops = !std::is_same_v<Mode, Dropless>;
  static constexpr bool pads = std::is_same_v<Mode, Pad>;

  double factor = 1.25;         ///< C = factor * K * n / E for a group of n tokens
  Index tokens_per_expert = 0;  ///< C itself, where positive, instead of the factor and the steps after it
  Rounding rounding = Rounding::ceiling;
  Share share = Share::choices;
  Index multiple = 1;            ///< C is rounded up to a multiple of this (ColossalAI: 2, V-MoE: 4)
  bool at_most_tokens = false;   ///< C is at most n (Mesh TensorFlow)
  Index minimum = 1;             ///< C is at least this (Mesh TensorFlow, DeepSpeed: 4), even where n is less
  Scope scope = Scope::batch();  ///< the tokens that share a C
  Priority priority = Priority::position;
  Renormalize renormalize = Renormalize::never;
  /// D: consecutive blocks of E / D experts share one budget C = factor * K * n / D (DeepSeek-V2's token dropping by
  /// device, with Priority::score); tokens_per_expert then means E / D times as much. 0: every expert has its own C.
  Index devices = 0;
  /// About this share of the sequences is never dropped while training (DeepSeek-V2: 0.1), drawn from (seed, step,
  /// first token of the sequence), so the same ones in every layer. Their tokens take places first and all stay, even
  /// where they alone exceed C; then all others are dropped. A batch without sequence offsets is one sequence.
  double exempt_fraction = 0;

  /// Throws ConfigError where the values cannot work; `experts` is E, 0 where not known yet.
  void check(Index experts = 0) const;

  /// C of an expert (of a device, where devices are given) in a group of n tokens, padding not counted, with K choices
  /// each (in ragged lists: their bound over the tokens).
  KOKKOS_FUNCTION Index limit(Index n, double k, Index experts) const {
    const Index parts = budgets(experts);
    if (tokens_per_expert > 0) return tokens_per_expert * (experts / parts);
    Index c = whole(factor * (share == Share::choices ? k : 1) * double(n) / double(parts));
    if (share == Share::each_choice) c = whole(k * double(c));
    c = (c + multiple - 1) / multiple * multiple;
    if (at_most_tokens && c > n) c = n;
    return c < minimum ? minimum : c;
  }

  /// How many budgets a group has: one for each expert, or for each device.
  KOKKOS_FUNCTION Index budgets(Index experts) const { return devices > 0 ? devices : experts; }

 private:
  KOKKOS_FUNCTION Index whole(double exact) const {
    constexpr double slack = 1e-9;  // a product such as 1.1 * 10 must not round up because of its last bit
    if (rounding == Rounding::ceiling) return Index(Kokkos::ceil(exact - slack));
    if (rounding == Rounding::floor) return Index(Kokkos::floor(exact + slack));
    const Index below = Index(Kokkos::floor(exact + slack));
    const double over = exact - double(below) - 0.5;
    return below + ((over > slack || (over > -slack && below % 2 != 0)) ? 1 : 0);
  }
};

template <class Mode>
void CapacityPolicy<Mode>::check(Index experts) const {
  using detail::require;
  if (!drops) return;
  require<ConfigError>(tokens_per_expert > 0 || factor > 0, "moe::CapacityPolicy: factor is ", factor,
                       "; it must be positive (1.25 is usual), or set tokens_per_expert.");
  require<ConfigError>(minimum >= 0, "moe::CapacityPolicy: minimum is ", minimum, "; it cannot be negative.");
  require<ConfigError>(multiple > 0, "moe::CapacityPolicy: multiple is ", multiple,
                       "; it must be positive, and 1 leaves C as it is.");
  require<ConfigError>(devices >= 0, "moe::CapacityPolicy: devices is ", devices,
                       "; it cannot be negative, and 0 gives every expert a budget of its own.");
  require<ConfigError>(exempt_fraction >= 0 && exempt_fraction <= 1, "moe::CapacityPolicy: exempt_fraction is ",
                       exempt_fraction, "; it must lie between 0 and 1.");
  require<ConfigError>(!pads || devices == 0, "moe::CapacityPolicy<Pad>: devices is ", devices,
                       ", but padded extents are an expert's and a device's budget is not. Use "
                       "CapacityPolicy<Drop>, or leave devices 0.");
  require<ConfigError>(!pads || exempt_fraction == 0, "moe::CapacityPolicy<Pad>: exempt_fraction is ", exempt_fraction,
                       ", but tokens that are never dropped may exceed a fixed extent. Use CapacityPolicy<Drop>, or "
                       "leave exempt_fraction 0.");
  require<ConfigError>(devices == 0 || experts % devices == 0, "moe::CapacityPolicy: ", experts,
                       " experts do not divide into devices = ", devices,
                       " equal groups. Choose devices that divide the number of experts.");
}

MOE_NAMESPACE_END
