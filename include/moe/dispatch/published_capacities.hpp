#pragma once
/// @file
/// The capacities of published systems, for groups of n tokens with K choices each among E experts.
///
/// Each sets C, who comes first and what happens to weights after drops. Scope (the tokens of a group) is the caller's
/// to set, and any value can be changed afterwards.

#include "moe/dispatch/capacity.hpp"

MOE_NAMESPACE_BEGIN

namespace published_capacities {

/// C = 2 n / E, rounded up; first choices first. Lepikhin et al. 2020, "GShard", algorithm 1 (there C = 2N / (G E); how
/// it is rounded is not said). K = 2.
inline CapacityPolicy<Drop> gshard_paper() {
  return {.factor = 1, .priority = Priority::choice};
}

/// C = max(4, min(n, int(factor n / E))), whatever K; first choices first. Mesh TensorFlow, transformer/moe.py: 1.25
/// while training, 2 in evaluation.
inline CapacityPolicy<Drop> mesh_tensorflow(double factor = 1.25) {
  return {.factor = factor,
          .rounding = Rounding::floor,
          .share = Share::tokens,
          .at_most_tokens = true,
          .minimum = 4,
          .priority = Priority::choice};
}

/// C = K n // E; first choices first, weights normalised after drops. fairscale, nn/moe/top2gate.py (K = 2; n must
/// divide by E there).
inline CapacityPolicy<Drop> fairscale() {
  return {.factor = 1,
          .rounding = Rounding::floor,
          .minimum = 0,
          .priority = Priority::choice,
          .renormalize = Renormalize::to_one};
}

/// C = max(minimum, ceil(factor K n / E)). DeepSpeed, moe/sharded_moe.py: its top-1 gate takes Priority::random and
/// leaves weights alone, its top-2 gate takes `choice`, its top-k gate `score` (drop_policy "probs"); these two
/// normalise weights after drops.
inline CapacityPolicy<Drop> deepspeed(double factor = 1, Priority priority = Priority::choice, Index minimum = 4) {
  return {.factor = factor,
          .minimum = minimum,
          .priority = priority,
          .renormalize = priority == Priority::random ? Renormalize::never : Renormalize::to_one};
}

/// C = K ceil(n / E); first choices first, weights normalised after drops. NLLB (2022, "No language left behind"):
/// fairseq, moe/top2gate.py, while training. Its batch_prioritized_routing is Priority::batch.
inline CapacityPolicy<Drop> nllb() {
  return {.factor = 1, .share = Share::each_choice, .priority = Priority::choice, .renormalize = Renormalize::to_one};
}

/// C = floor(factor K n / E), plus one where odd, at least 4; first choices first. ColossalAI, moe/routers.py
/// (OpenMoE).
inline CapacityPolicy<Drop> colossal_ai(double factor = 1.25) {
  return {.factor = factor, .rounding = Rounding::floor, .multiple = 2, .minimum = 4, .priority = Priority::choice};
}

/// C = max(4, int(round(factor n / E))), whatever K; first choices first. flaxformer,
/// architectures/moe/moe_layers.py. Its batch_prioritized_routing is Priority::batch.
inline CapacityPolicy<Drop> flaxformer(double factor = 1.25) {
  return {.factor = factor,
          .rounding = Rounding::nearest,
          .share = Share::tokens,
          .minimum = 4,
          .priority = Priority::choice};
}

/// C = ceil(factor K n / E), up to a multiple of 4; first choices first. V-MoE (Riquelme et al. 2021): vmoe/moe.py,
/// compute_capacity, where rounding may also be `nearest` and the multiple 1. Its batch_priority is Priority::batch.
inline CapacityPolicy<Drop> vmoe(double factor = 1.05, Rounding rounding = Rounding::ceiling, Index multiple = 4) {
  return {.factor = factor, .rounding = rounding, .multiple = multiple, .priority = Priority::choice};
}

/// C = K n / D, rounded up, for all experts of a device; the lowest weights are dropped, a tenth of the sequences
/// never while training. DeepSeek-AI 2024, "DeepSeek-V2", section 2.2.4 (rounding is not said).
inline CapacityPolicy<Drop> deepseek_v2(Index devices) {
  return {.factor = 1, .priority = Priority::score, .devices = devices, .exempt_fraction = 0.1};
}

}  // namespace published_capacities

MOE_NAMESPACE_END
