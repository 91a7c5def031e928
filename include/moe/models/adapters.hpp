#pragma once
/// @file
/// Published mixtures of adapters over a frozen model, by name. docs/adapters.md says what each was checked against.
///
/// Each is an AdaptedLinear, which takes the place of one linear map, with MixLoRA an AdaptedFFN, which takes that of a
/// feed-forward network. XLayer<More...> takes losses, On<Space>, Precision<T> and the like; X is the published one.

#include "moe/adapters/activation_scaling.hpp"
#include "moe/adapters/adapted_ffn.hpp"
#include "moe/adapters/adapted_projections.hpp"
#include "moe/adapters/adapted_self_attention.hpp"
#include "moe/adapters/contrastive_loss.hpp"
#include "moe/adapters/elementwise_low_rank.hpp"
#include "moe/adapters/layer_counts.hpp"
#include "moe/adapters/slow_memory.hpp"
#include "moe/adapters/universal_adapter.hpp"
#include "moe/balance/localised_balance_loss.hpp"
#include "moe/balance/losses.hpp"
#include "moe/balance/task_loss.hpp"
#include "moe/routing/mlp_logits.hpp"
#include "moe/routing/sequence_logits.hpp"
#include "moe/routing/task_choice.hpp"
#include "moe/routing/task_logits.hpp"

MOE_NAMESPACE_BEGIN

/// Every adapter on every token, weighted by the router's softmax.
using SoftMixtureRouter = Router<Softmax, AllExperts>;

/// Hu et al. 2021, "LoRA": one adapter. With more, all of weight 1.
template <class... More>
using LoRALayer = AdaptedLinear<Unrouted, LowRankAdapters<>, More...>;
using LoRA = LoRALayer<>;

/// Zadouri et al. 2023, "Pushing mixture of experts to the limit": vectors that scale activations, merged before use.
template <class... More>
using MoVLayer = AdaptedLinear<SoftMixtureRouter, ActivationScaling, More...>;
using MoV = MoVLayer<>;
/// The same paper's mixture of LoRAs by soft merging.
template <class... More>
using MoLoRALayer = AdaptedLinear<SoftMixtureRouter, LowRankAdapters<>, More...>;
using MoLoRA = MoLoRALayer<>;
/// Yang et al. 2024, "MoRAL": the layer is MoLoRA's; its data and its lifelong editing are a way to train.
template <class... More>
using MoRALLayer = MoLoRALayer<More...>;
using MoRAL = MoRALLayer<>;
/// Dou et al. 2023, "LoRAMoE": MoLoRA's layer with the localised balance constraint: types of sequences
/// are Batch::task_ids.
template <class... More>
using LoRAMoELayer = MoLoRALayer<More...>;
using LoRAMoE = LoRAMoELayer<LocalisedBalanceLoss>;
/// Tian et al. 2024, "HydraLoRA": one A, a B for each expert.
template <class... More>
using HydraLoRALayer = AdaptedLinear<SoftMixtureRouter, LowRankAdapters<SharedDown>, More...>;
using HydraLoRA = HydraLoRALayer<>;

/// Gao et al. 2024, "Higher layers need more LoRA experts": two experts a token, their number by layer
/// (`expert_counts`).
using MoLARouter = Router<Softmax, TopK<2>, NormalizeSum>;
template <class... More>
using MoLALayer = AdaptedLinear<MoLARouter, LowRankAdapters<>, More...>;
using MoLA = MoLALayer<SwitchBalanceLoss>;
/// Luo et al. 2024, "MoELoRA: contrastive learning guided mixture of experts": MoLA's router, a balance loss, and a
/// contrastive loss on what experts give.
template <class... More>
using MoELoRALayer = AdaptedLinear<MoLARouter, LowRankAdapters<>, More...>;
using MoELoRA = MoELoRALayer<SwitchBalanceLoss, ContrastiveExpertLoss>;
/// Chen et al. 2024, "LLaVA-MoLE": the best expert of a token, with weight 1, and Switch's loss, by which alone its
/// router learns.
using LLaVAMoLERouter = Router<Softmax, TopK<1>, ConstantWeight>;
template <class... More>
using LLaVAMoLELayer = AdaptedLinear<LLaVAMoLERouter, LowRankAdapters<>, More...>;
using LLaVAMoLE = LLaVAMoLELayer<SwitchBalanceLoss>;
/// Zhu et al. 2023, "SiRA": top-k with a capacity, and experts dropped from the gate while training.
using SiRARouter = Router<Softmax, TopK<>, ExpertDropout>;
template <class... More>
using SiRALayer = AdaptedLinear<SiRARouter, LowRankAdapters<>, CapacityPolicy<Drop>, More...>;
using SiRA = SiRALayer<GShardBalanceLoss>;

/// Liu et al. 2023, "MOELoRA": weights by the task alone; the scaling's r is that of all adapters together. Its value:
/// `MOELoRARouter{TaskLogits{.tasks = n}}`.
using MOELoRARouter = Router<TaskLogits, Softmax, AllExperts>;
template <class... More>
using MOELoRALayer = AdaptedLinear<MOELoRARouter, LowRankAdapters<OwnDown, AlphaOverTotalRank>, More...>;
using MOELoRA = MOELoRALayer<>;
/// Gou et al. 2023, "MoCLE": the best expert of the instruction's cluster, and a universal one with the weight left.
/// Its value: `mocle_router(clusters, tau)`; Batch::task_ids are the clusters.
using MoCLERouter = Router<TaskLogits, LogitScale, Softmax, TopK<1>>;
template <class... More>
using MoCLELayer = AdaptedLinear<MoCLERouter, WithUniversal<LowRankAdapters<>, RemainingWeight>, More...>;
using MoCLE = MoCLELayer<>;
inline MoCLERouter mocle_router(Index clusters, double tau, Index width = 64) {
  return MoCLERouter{TaskLogits{.tasks = clusters, .width = width}, LogitScale{1 / tau}};
}

/// Feng et al. 2024, "Mixture-of-LoRAs" (MoA): adapters trained apart, then a router of sequences that learns their
/// domains. Expert e is domain e of Batch::task_ids.
using MixtureOfLoRAsRouter = Router<SequenceMeanLogits<>, Softmax, TopK<1>>;
template <class... More>
using MixtureOfLoRAsLayer = AdaptedLinear<MixtureOfLoRAsRouter, LowRankAdapters<>, More...>;
using MixtureOfLoRAs = MixtureOfLoRAsLayer<TaskClassificationLoss>;
/// The name that the paper gives its architecture, which MoA of attention heads (models/attention.hpp) has, too.
template <class... More>
using MOALayer = MixtureOfLoRAsLayer<More...>;
using MOA = MOALayer<TaskClassificationLoss>;
/// Chen et al. 2023, "Octavius": two experts once a sequence.
using OctaviusRouter = Router<SequenceMeanLogits<>, Softmax, TopK<2>, NormalizeSum>;
template <class... More>
using OctaviusLayer = AdaptedLinear<OctaviusRouter, LowRankAdapters<>, More...>;
using Octavius = OctaviusLayer<>;

/// Buehler and Buehler 2024, "X-LoRA": adapters trained apart stay as they are; weights for each layer and token come
/// from the last hidden states of a first pass, which Batch::router_input holds. LogitScale is 1 / temperature.
using XLoRARouter = Router<LinearLogits, LogitScale, Softmax, AllExperts>;
template <class... More>
using XLoRALayer = AdaptedLinear<XLoRARouter, FrozenAdapters<>, More...>;
using XLoRA = XLoRALayer<>;

/// Learned scales that start at zero.
struct ZeroStartScale : PerExpertScale {
  ZeroStartScale() : PerExpertScale{0} {}
};
/// Wang et al. 2023, "MultiLoRA": parallel adapters with learned scales that start at zero, A and B both random.
using MultiLoRARouter = Router<NoLogits, Identity, AllExperts, ConstantWeight, ZeroStartScale>;
template <class... More>
using MultiLoRALayer = AdaptedLinear<MultiLoRARouter, LowRankAdapters<OwnDown, AlphaOverRank, RandomStart>, More...>;
using MultiLoRA = MultiLoRALayer<>;

/// An adapter for each task, user or sample, by Batch::task_ids.
using TaskRouter = Router<NoLogits, Identity, TaskChoice, ConstantWeight>;
/// Wen and Chaudhuri 2023, "Batched low-rank adaptation of foundation models": an adapter for each sample of a batch,
/// entry by entry.
template <class... More>
using FLoRALayer = AdaptedLinear<TaskRouter, ElementwiseLowRank, More...>;
using FLoRA = FLoRALayer<>;
/// MITLoRA: an adapter for each task beside one for all of them.
template <class... More>
using MITLoRALayer = AdaptedLinear<TaskRouter, WithUniversal<LowRankAdapters<>, FullWeight>, More...>;
using MITLoRA = MITLoRALayer<>;
/// Yang et al. 2024, "MLoRE": a sample's k best low-rank paths and one that all share, as linear maps of tokens (its
/// paths are convolutions). Each task has a router of its own: one layer a task, whose adapters share their arrays.
using MLoRERouter = Router<SequenceMeanLogits<>, Identity, TopK<>, SoftmaxOfChosen>;
template <class... More>
using MLoRELayer = AdaptedLinear<MLoRERouter, WithUniversal<LowRankAdapters<>, FullWeight>, More...>;
using MLoRE = MLoRELayer<>;

/// Ren et al. 2024, I-LoRA: LoRA as the fast memory; the slow one is a second layer whose parameters `move_average`
/// follows, and `ConsistencyLoss` holds both together on replayed inputs.
template <class... More>
using ILoRALayer = LoRALayer<More...>;
using ILoRA = ILoRALayer<>;

/// Li et al. 2024, "MixLoRA": two experts of a token, each the frozen feed-forward network with adapters of its own;
/// attention gets a LoRA on each projection (AdaptedSelfAttention<>). Jitter, in the paper on request, acts while
/// training here; the authors' code also jitters in inference.
using MixLoRARouter = Router<Softmax, TopK<2>, NormalizeSum>;
template <class... More>
using MixLoRALayer = AdaptedFFN<SwiGLU, MixLoRARouter, LowRankAdapters<>, More...>;
using MixLoRA = MixLoRALayer<SwitchBalanceLoss>;
template <class... More>
using MixLoRAAttentionLayer = AdaptedSelfAttention<Unrouted, LowRankAdapters<>, More...>;
using MixLoRAAttention = MixLoRAAttentionLayer<>;

MOE_NAMESPACE_END
