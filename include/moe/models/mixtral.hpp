#pragma once
/// @file
/// Mixtral (Jiang et al. 2024, "Mixtral of experts").
///
/// Softmax over all experts, the two best, their probabilities divided by their sum (the same as a softmax over the
/// two chosen logits), SwiGLU experts, no token dropped.

#include "moe/layers/moe_layer.hpp"

MOE_NAMESPACE_BEGIN

using MixtralRouter = Router<Softmax, TopK<2>, NormalizeSum>;
/// Give it a SwitchBalanceLoss to train: transformers' router_aux_loss counts all choices.
template <class... More>
using MixtralLayer = MoELayer<MixtralRouter, ExpertFFN<SwiGLU>, CapacityPolicy<Dropless>, More...>;
using Mixtral = MixtralLayer<SwitchBalanceLoss>;

inline constexpr MoEConfig mixtral_8x7b{.hidden = 4096, .intermediate = 14336, .experts = 8};
inline constexpr MoEConfig mixtral_8x22b{.hidden = 6144, .intermediate = 16384, .experts = 8};

MOE_NAMESPACE_END
