#pragma once
/// @file
/// Qwen1.5-MoE, Qwen2-MoE (2024), Qwen3-MoE and Qwen3-Next (2025).
///
/// Softmax over all experts. Until Qwen2 the probabilities of the chosen are their weights as they are, from Qwen3 on
/// they are divided by their sum. Shared experts are weighted by a sigmoid of their own, except in Qwen3-MoE, which has
/// none.

#include "moe/layers/moe_layer.hpp"

MOE_NAMESPACE_BEGIN

/// Give these a SwitchBalanceLoss to train: transformers' router_aux_loss counts all choices.
using Qwen15MoERouter = Router<Softmax, TopK<4>>;
template <class... More>
using Qwen15MoELayer = MoELayer<Qwen15MoERouter, ExpertFFN<SwiGLU>, SharedExperts<4, SwiGLU, SigmoidGate>, More...>;
using Qwen15MoE = Qwen15MoELayer<SwitchBalanceLoss>;
/// Qwen1.5-MoE-A2.7B.
inline constexpr MoEConfig qwen1_5_moe_a2_7b{.hidden = 2048, .intermediate = 1408, .experts = 60};

using Qwen2MoERouter = Router<Softmax, TopK<8>>;
template <class... More>
using Qwen2MoELayer = MoELayer<Qwen2MoERouter, ExpertFFN<SwiGLU>, SharedExperts<8, SwiGLU, SigmoidGate>, More...>;
using Qwen2MoE = Qwen2MoELayer<SwitchBalanceLoss>;
/// Qwen2-57B-A14B.
inline constexpr MoEConfig qwen2_57b_a14b{.hidden = 3584, .intermediate = 2560, .experts = 64};

using Qwen3MoERouter = Router<Softmax, TopK<8>, NormalizeSum>;
template <class... More>
using Qwen3MoELayer = MoELayer<Qwen3MoERouter, ExpertFFN<SwiGLU>, More...>;
using Qwen3MoE = Qwen3MoELayer<SwitchBalanceLoss>;
inline constexpr MoEConfig qwen3_30b_a3b{.hidden = 2048, .intermediate = 768, .experts = 128};
inline constexpr MoEConfig qwen3_235b_a22b{.hidden = 4096, .intermediate = 1536, .experts = 128};

using Qwen3NextRouter = Router<Softmax, TopK<10>, NormalizeSum>;
template <class... More>
using Qwen3NextLayer = MoELayer<Qwen3NextRouter, ExpertFFN<SwiGLU>, SharedExperts<1, SwiGLU, SigmoidGate>, More...>;
using Qwen3Next = Qwen3NextLayer<SwitchBalanceLoss>;
inline constexpr MoEConfig qwen3_next_80b_a3b{.hidden = 2048, .intermediate = 512, .experts = 512};

MOE_NAMESPACE_END
