#pragma once
/// @file
/// Published mixtures of attention heads: MoA, JetMoE, SwitchHead. docs/attention.md has their formulas.

#include "moe/attention/mixture_of_attention_heads.hpp"
#include "moe/attention/switch_head.hpp"
#include "moe/balance/entropy_loss.hpp"
#include "moe/layers/transformer_block.hpp"
#include "moe/models/gpt_oss.hpp"

MOE_NAMESPACE_BEGIN

/// MoA (Zhang et al. 2022): probabilities of the chosen divided by their sum, which the gradient takes for a constant.
using MoARouter = Router<Softmax, TopK<>, NormalizeDetachedSum>;
template <class... More>
using MoALayer = MixtureOfAttentionHeads<MoARouter, More...>;
/// The paper's losses; its balance loss counts all choices: SwitchBalanceLoss(1e-2, Count::all).
using MoA = MoALayer<SwitchBalanceLoss, RouterZLoss>;

/// JetMoE (Shen et al. 2024): its feed-forward experts' router, one bias on the output.
template <class... More>
using JetMoEAttentionLayer = MixtureOfAttentionHeads<JetMoERouter, OutputBias, More...>;
using JetMoEAttention = JetMoEAttentionLayer<>;
/// Both kinds of experts behind their norms.
using JetMoEBlock = TransformerBlock<JetMoEAttention, JetMoE>;
inline constexpr AttentionMixtureConfig jetmoe_8b_attention{
    .hidden = 2048, .experts = 8, .key_heads = 16, .head_width = 128};

/// SwitchHead (Csordás et al. 2024) with two experts of each head at work, and what it trains with.
using SwitchHeadTop2 = SwitchHead<2, Router<Sigmoid, TopKPerGroup<2>, ExpertDropout>, EntropyLoss>;

MOE_NAMESPACE_END
