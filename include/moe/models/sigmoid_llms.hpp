#pragma once
/// @file
/// Language models that score each expert for itself and balance by a bias on the choice, after DeepSeek-V3: Kimi K2,
/// GLM-4.5, MiniMax-M2, LFM2, DeepSeek-V4, Nemotron 3 Nano, Inkling.

#include "moe/layers/moe_layer.hpp"

MOE_NAMESPACE_BEGIN

/// Kimi K2 (Moonshot 2025) and GLM-4.5 (Zhipu 2025): DeepSeek-V3's router without groups.
using KimiK2Router = Router<Sigmoid, TopK<8>, BiasBalancer, NormalizeSum, Scale>;
template <class... More>
using KimiK2Layer = MoELayer<KimiK2Router, ExpertFFN<SwiGLU>, SharedExperts<1>, More...>;
using KimiK2 = KimiK2Layer<SequenceBalanceLoss>;
/// `KimiK2Router{Scale{2.827}}`.
inline constexpr MoEConfig kimi_k2{.hidden = 7168, .intermediate = 2048, .experts = 384};
/// `KimiK2Router{Scale{2.5}}`; Air needs no scale.
inline constexpr MoEConfig glm_4_5{.hidden = 5120, .intermediate = 1536, .experts = 160};
inline constexpr MoEConfig glm_4_5_air{.hidden = 4096, .intermediate = 1408, .experts = 128};

/// MiniMax-M2 (2025): neither scale nor shared expert.
using MiniMaxM2Router = Router<Sigmoid, TopK<8>, BiasBalancer, NormalizeSum>;
template <class... More>
using MiniMaxM2Layer = MoELayer<MiniMaxM2Router, ExpertFFN<SwiGLU>, More...>;
using MiniMaxM2 = MiniMaxM2Layer<>;
inline constexpr MoEConfig minimax_m2{.hidden = 3072, .intermediate = 1536, .experts = 256};

/// LFM2 (Liquid AI 2025): 1e-6 in the normaliser, `LFM2Router{NormalizeSum{1e-6}}`.
using LFM2Router = Router<Sigmoid, TopK<4>, BiasBalancer, NormalizeSum>;
template <class... More>
using LFM2Layer = MoELayer<LFM2Router, ExpertFFN<SwiGLU>, More...>;
using LFM2 = LFM2Layer<>;
inline constexpr MoEConfig lfm2_8b_a1b{.hidden = 2048, .intermediate = 1792, .experts = 32};

/// DeepSeek-V4 (2026): scores sqrt(softplus), clamped experts. Its first layers read their choices from a table of
/// token ids, and weigh them by the same scores.
using DeepSeekV4Router = Router<SqrtSoftplus, TopK<6>, BiasBalancer, NormalizeSum, Scale>;
using DeepSeekV4HashRouter = Router<SqrtSoftplus, TableLookup<6>, NormalizeSum, Scale>;
template <class... More>
using DeepSeekV4Layer = MoELayer<DeepSeekV4Router, ExpertFFN<ClampedSwiGLU>, SharedExperts<1, ClampedSwiGLU>, More...>;
template <class... More>
using DeepSeekV4HashLayer =
    MoELayer<DeepSeekV4HashRouter, ExpertFFN<ClampedSwiGLU>, SharedExperts<1, ClampedSwiGLU>, More...>;
using DeepSeekV4 = DeepSeekV4Layer<>;
using DeepSeekV4Hash = DeepSeekV4HashLayer<>;
/// `DeepSeekV4Router{Scale{1.5}}`, with the experts below.
inline constexpr MoEConfig deepseek_v4_flash{.hidden = 4096, .intermediate = 2048, .experts = 256};
inline constexpr ClampedSwiGLU deepseek_v4_activation{.limit = 10, .alpha = 1, .shift = 0};
inline ExpertFFN<ClampedSwiGLU> deepseek_v4_experts() {
  return {.activation = deepseek_v4_activation};
}
inline SharedExperts<1, ClampedSwiGLU> deepseek_v4_shared() {
  return {.activation = deepseek_v4_activation};
}

/// Nemotron 3 Nano (NVIDIA 2025): squared ReLU without gates; the shared expert is twice as wide.
using NemotronNanoRouter = Router<Sigmoid, TopK<6>, BiasBalancer, NormalizeSum, Scale>;
template <class... More>
using NemotronNanoLayer = MoELayer<NemotronNanoRouter, ExpertFFN<SquaredReLU>, SharedExperts<2, SquaredReLU>, More...>;
using NemotronNano = NemotronNanoLayer<>;
/// `NemotronNanoRouter{Scale{2.5}}`.
inline constexpr MoEConfig nemotron_3_nano{.hidden = 2688, .intermediate = 1856, .experts = 128};

/// Inkling (Thinking Machines 2026): the last two experts are shared, and normalised together with the six chosen ones.
using InklingRouter = Router<Sigmoid, WithShared<TopK<6>, 2>, BiasBalancer, NormalizeSum, LearnedScale, Scale>;
template <class... More>
using InklingLayer = MoELayer<InklingRouter, ExpertFFN<SwiGLU>, More...>;
using Inkling = InklingLayer<>;
/// 256 experts to choose from and 2 shared; `InklingRouter{Scale{8.0}}`.
inline constexpr MoEConfig inkling{.hidden = 6144, .intermediate = 3072, .experts = 258};

MOE_NAMESPACE_END
