#pragma once
/// @file
/// PhiMoE (Phi-3.5-MoE; Liu et al. 2024, "GRIN: gradient-informed MoE").
///
/// Two experts, one after the other, each drawn while training from those whose logits are near the largest; weights do
/// not sum to one. Scores are the logits: a balance loss needs Probability::softmax.

#include "moe/layers/moe_layer.hpp"
#include "moe/routing/sparse_mixer.hpp"

MOE_NAMESPACE_BEGIN

using PhiMoERouter = Router<Identity, SparseMixer>;
template <class... More>
using PhiMoELayer = MoELayer<PhiMoERouter, ExpertFFN<SwiGLU>, More...>;
using PhiMoE = PhiMoELayer<>;
inline constexpr MoEConfig phi_3_5_moe{.hidden = 4096, .intermediate = 6400, .experts = 16};

MOE_NAMESPACE_END
