#pragma once
/// @file
/// Language models whose scores are a softmax over all experts, beside Mixtral, DeepSeek and Qwen.

#include "moe/layers/moe_layer.hpp"
#include "moe/models/mixtral.hpp"

MOE_NAMESPACE_BEGIN

/// OLMoE (Muennighoff et al. 2024): probabilities as they are.
using OLMoERouter = Router<Softmax, TopK<8>>;
template <class... More>
using OLMoELayer = MoELayer<OLMoERouter, ExpertFFN<SwiGLU>, More...>;
using OLMoE = OLMoELayer<SwitchBalanceLoss, RouterZLoss>;
inline constexpr MoEConfig olmoe_1b_7b{.hidden = 2048, .intermediate = 1024, .experts = 64};

/// Jamba (Lieber et al. 2024): two experts, probabilities as they are.
using JambaRouter = Router<Softmax, TopK<2>>;
template <class... More>
using JambaLayer = MoELayer<JambaRouter, ExpertFFN<SwiGLU>, More...>;
using Jamba = JambaLayer<SwitchBalanceLoss>;
inline constexpr MoEConfig jamba_v0_1{.hidden = 4096, .intermediate = 14336, .experts = 16};

/// DBRX (Databricks 2024): the probabilities of the chosen divided by their L1 norm.
using DBRXRouter = Router<Softmax, TopK<4>, NormalizeLp>;
template <class... More>
using DBRXLayer = MoELayer<DBRXRouter, ExpertFFN<SwiGLU>, More...>;
using DBRX = DBRXLayer<SwitchBalanceLoss>;
inline constexpr MoEConfig dbrx{.hidden = 6144, .intermediate = 10752, .experts = 16};

/// Grok-1 (xAI 2024): two experts, probabilities as they are, a GELU gate by its tanh approximation.
using Grok1Router = Router<Softmax, TopK<2>>;
template <class... More>
using Grok1Layer = MoELayer<Grok1Router, ExpertFFN<GeGLUTanh>, More...>;
using Grok1 = Grok1Layer<>;
inline constexpr MoEConfig grok_1{.hidden = 6144, .intermediate = 32768, .experts = 8};

/// Arctic (Snowflake 2024): a dense FFN beside the experts, on an input of its own: Batch::branch_input.
template <class... More>
using ArcticLayer = MoELayer<MixtralRouter, ExpertFFN<SwiGLU>, SharedExperts<1>, More...>;
using Arctic = ArcticLayer<SwitchBalanceLoss>;
inline constexpr MoEConfig arctic{.hidden = 7168, .intermediate = 4864, .experts = 128};
/// Its dense FFN is as wide as the model.
inline SharedExperts<1> arctic_dense() {
  return {.intermediate = 7168};
}

/// MiniMax-01 (2025) routes as Mixtral does.
inline constexpr MoEConfig minimax_01{.hidden = 6144, .intermediate = 9216, .experts = 32};

/// Hunyuan-A13B (Tencent 2025): normalised, with a shared expert.
using HunyuanRouter = Router<Softmax, TopK<8>, NormalizeSum>;
template <class... More>
using HunyuanLayer = MoELayer<HunyuanRouter, ExpertFFN<SwiGLU>, SharedExperts<1>, More...>;
using Hunyuan = HunyuanLayer<>;
inline constexpr MoEConfig hunyuan_a13b{.hidden = 4096, .intermediate = 3072, .experts = 64};

/// ERNIE 4.5 (Baidu 2025): a bias on the choice, and sums that count as at least 1e-12.
using Ernie45Router = Router<Softmax, TopK<6>, BiasBalancer, NormalizeMax>;
template <class... More>
using Ernie45Layer = MoELayer<Ernie45Router, ExpertFFN<SwiGLU>, SharedExperts<2>, More...>;
using Ernie45 = Ernie45Layer<>;
inline constexpr MoEConfig ernie4_5_21b_a3b{.hidden = 2560, .intermediate = 1536, .experts = 64};

MOE_NAMESPACE_END
