#pragma once
/// @file
/// GShard (Lepikhin et al. 2020, "GShard: scaling giant models with conditional computation and automatic sharding").
///
/// Each token goes to its two best experts with their probabilities normalised to one. All first choices come before
/// all second ones in the experts' queues. (The paper also drops second choices at random by weight; here they are
/// all tried.)

#include "moe/layers/moe_layer.hpp"

MOE_NAMESPACE_BEGIN

using GShardRouter = Router<Softmax, TopK<2>, NormalizeSum>;
template <class... More>
using GShardLayer = MoELayer<GShardRouter, ExpertFFN<ReLU>, CapacityPolicy<Drop>, GShardBalanceLoss, More...>;
using GShard = GShardLayer<>;

/// The 600-billion-parameter translation model: 2048 experts, every other layer (table 1).
inline constexpr MoEConfig gshard_600b{.hidden = 1024, .intermediate = 8192, .experts = 2048};

/// The paper's capacity: 2 * n / E in each group of n tokens, first choices first.
inline CapacityPolicy<Drop> gshard_capacity(Scope scope = Scope::batch()) {
  CapacityPolicy<Drop> capacity;
  capacity.factor = 1;  // times K = 2
  capacity.minimum = 4;
  capacity.scope = scope;
  capacity.priority = Priority::choice;
  return capacity;
}

MOE_NAMESPACE_END
