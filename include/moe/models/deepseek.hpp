#pragma once
/// @file
/// DeepSeekMoE, DeepSeek-V2 and DeepSeek-V3.
///
/// DeepSeekMoE (Dai et al. 2024) cuts experts finer, chooses more of them, and gives every token shared experts that
/// hold what is common; weights are the softmax scores as they are. DeepSeek-V2 (2024) limits a token to the best
/// groups of experts (its devices) and scales the weights. DeepSeek-V3 (2024) scores by sigmoid, normalises the
/// chosen, and balances by a bias on the choice instead of a strong loss.

#include "moe/layers/moe_layer.hpp"

MOE_NAMESPACE_BEGIN

using DeepSeekMoERouter = Router<Softmax, TopK<6>>;
template <class... More>
using DeepSeekMoELayer = MoELayer<DeepSeekMoERouter, ExpertFFN<SwiGLU>, SharedExperts<2>, ExpertBalanceLoss, More...>;
using DeepSeekMoE = DeepSeekMoELayer<>;
/// DeepSeekMoE 16B.
inline constexpr MoEConfig deepseek_moe_16b{.hidden = 2048, .intermediate = 1408, .experts = 64};

using DeepSeekV2Router = Router<Softmax, TopK<6>, GroupLimit<8, 3, Max>, Scale>;
template <class... More>
using DeepSeekV2Layer = MoELayer<DeepSeekV2Router, ExpertFFN<SwiGLU>, SharedExperts<2>, ExpertBalanceLoss, More...>;
using DeepSeekV2 = DeepSeekV2Layer<>;
/// DeepSeek-V2 236B; its router's weights are scaled by 16: `DeepSeekV2Router{Scale{16.0}}`.
inline constexpr MoEConfig deepseek_v2{.hidden = 5120, .intermediate = 1536, .experts = 160};

using DeepSeekV3Router = Router<Sigmoid, TopK<8>, GroupLimit<8, 4, BestTwo>, BiasBalancer, NormalizeSum, Scale>;
template <class... More>
using DeepSeekV3Layer = MoELayer<DeepSeekV3Router, ExpertFFN<SwiGLU>, SharedExperts<1>, SequenceBalanceLoss, More...>;
using DeepSeekV3 = DeepSeekV3Layer<>;
/// DeepSeek-V3 671B; its router's weights are scaled by 2.5: `DeepSeekV3Router{Scale{2.5}}`.
inline constexpr MoEConfig deepseek_v3{.hidden = 7168, .intermediate = 2048, .experts = 256};

MOE_NAMESPACE_END
