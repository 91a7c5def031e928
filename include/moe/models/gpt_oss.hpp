#pragma once
/// @file
/// gpt-oss (OpenAI 2025) and others that choose by logits and weigh the chosen by a softmax over these alone: Granite,
/// Aria, JetMoE. Train them with SwitchBalanceLoss(1e-3, Count::all), which is transformers' router_aux_loss.

#include "moe/layers/moe_layer.hpp"

MOE_NAMESPACE_BEGIN

/// Biases in the router and in the experts, whose gates and inputs are clamped (ClampedSwiGLU's defaults).
using GptOssRouter = Router<BiasedLogits, Identity, TopK<4>, SoftmaxOfChosen>;
template <class... More>
using GptOssLayer = MoELayer<GptOssRouter, ExpertFFN<ClampedSwiGLU, Bias>, More...>;
using GptOss = GptOssLayer<>;
inline constexpr MoEConfig gpt_oss_20b{.hidden = 2880, .intermediate = 2880, .experts = 32};
inline constexpr MoEConfig gpt_oss_120b{.hidden = 2880, .intermediate = 2880, .experts = 128};

/// Granite 3 (IBM 2024).
using GraniteRouter = Router<Identity, TopK<8>, SoftmaxOfChosen>;
template <class... More>
using GraniteLayer = MoELayer<GraniteRouter, ExpertFFN<SwiGLU>, More...>;
using Granite = GraniteLayer<>;
inline constexpr MoEConfig granite_3_1b_a400m{.hidden = 1024, .intermediate = 512, .experts = 32};
inline constexpr MoEConfig granite_3_3b_a800m{.hidden = 1536, .intermediate = 512, .experts = 40};

/// Aria (Li et al. 2024): two shared experts.
using AriaRouter = Router<Identity, TopK<6>, SoftmaxOfChosen>;
template <class... More>
using AriaLayer = MoELayer<AriaRouter, ExpertFFN<SwiGLU>, SharedExperts<2>, More...>;
using Aria = AriaLayer<>;
inline constexpr MoEConfig aria{.hidden = 2560, .intermediate = 1664, .experts = 64};

/// JetMoE (Shen et al. 2024), the feed-forward part: one bias on the layer's output.
using JetMoERouter = Router<Identity, TopK<2>, SoftmaxOfChosen>;
template <class... More>
using JetMoELayer = MoELayer<JetMoERouter, ExpertFFN<SwiGLU>, OutputBias, More...>;
using JetMoE = JetMoELayer<>;
inline constexpr MoEConfig jetmoe_8b{.hidden = 2048, .intermediate = 5632, .experts = 8};

MOE_NAMESPACE_END
