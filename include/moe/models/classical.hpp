#pragma once
/// @file
/// Mixtures of the years before large language models.
///
/// Where X alone would be a policy's name or too plain a word, the composition is called XMixture.

#include "moe/balance/gate_losses.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/routing/balanced_assignment.hpp"
#include "moe/routing/noisy_logits.hpp"
#include "moe/routing/simple_logits.hpp"
#include "moe/routing/sinkhorn.hpp"
#include "moe/routing/structured_logits.hpp"

MOE_NAMESPACE_BEGIN

/// Jacobs, Jordan, Nowlan and Hinton 1991, "Adaptive mixtures of local experts": every expert works on every token, and
/// y is their mean weighted by the softmax, as in its eq. 1.1. (Its other two losses compare each expert with the
/// target for itself, which no loss here does.)
using AdaptiveMixtureRouter = Router<BiasedLogits, Softmax, AllExperts>;
template <class... More>
using AdaptiveMixtureLayer = MoELayer<AdaptiveMixtureRouter, ExpertFFN<Tanh, Bias>, More...>;
using AdaptiveMixture = AdaptiveMixtureLayer<>;

/// Jordan and Jacobs 1994, "Hierarchical mixtures of experts and the EM algorithm", two levels deep: a token's weight
/// for an expert is its group's probability times the expert's in the group. Trained by gradients, not by EM.
using HierarchicalMixtureRouter = Router<HierarchicalLogits, Softmax, AllExperts>;
template <class... More>
using HierarchicalMixtureLayer = MoELayer<HierarchicalMixtureRouter, ExpertFFN<Tanh, Bias>, More...>;
using HierarchicalMixture = HierarchicalMixtureLayer<>;

/// Shazeer et al. 2017, "Outrageously large neural networks": the four largest noisy logits, weighted by their softmax;
/// two losses keep the weights' sums and the expected counts even.
using NoisyTopKRouter = Router<NoisyLogits, Identity, TopK<4>, SoftmaxOfChosen>;
template <class... More>
using NoisyTopKLayer = MoELayer<NoisyTopKRouter, ExpertFFN<ReLU>, ImportanceLoss, LoadLoss, More...>;
using NoisyTopK = NoisyTopKLayer<>;
/// Its MoE-256 (section 5.1).
inline constexpr MoEConfig noisy_top_k_256{.hidden = 512, .intermediate = 1024, .experts = 256};
/// The paper starts both of the router's weights at zero (appendix A), so that at first noise alone chooses.
template <class Layer>
void start_router_at_zero(const Layer& layer) {
  Kokkos::deep_copy(layer.parameters.router.weight, 0);
  Kokkos::deep_copy(layer.parameters.router.noise_weight, 0);
}

/// Lewis et al. 2021, "BASE layers": while training all experts get equally many tokens, as well as that can be done;
/// otherwise each token takes its best. Weights are sigmoids.
using BASERouter = Router<Sigmoid, ChooseByLogits, BalancedAssignment>;
template <class... More>
using BASELayer = MoELayer<BASERouter, ExpertFFN<ReLU>, More...>;
using BASEMixture = BASELayer<>;

/// Clark et al. 2022, "Unified scaling laws for routed language models": BASE by a plan of optimal transport.
using SBASERouter = Router<Sigmoid, ChooseByLogits, Sinkhorn<1>>;
template <class... More>
using SBASELayer = MoELayer<SBASERouter, ExpertFFN<ReLU>, More...>;
using SBASEMixture = SBASELayer<>;

/// Roller et al. 2021, "Hash layers for large sparse models": a token's id names its expert, and nothing is learned.
/// Give the layer `hash_router(vocabulary)` and the batch its token_ids.
using HashRouter = Router<NoLogits, Identity, TableLookup<1>, ConstantWeight>;
template <class... More>
using HashLayer = MoELayer<HashRouter, ExpertFFN<ReLU>, More...>;
using HashMixture = HashLayer<>;
inline HashRouter hash_router(Index vocabulary) {
  return HashRouter{TableLookup<1>{.table_rows = vocabulary}};
}

/// Zhou et al. 2022, "Mixture-of-experts with expert choice routing": each expert takes its 2 n / E best tokens,
/// weighted by their probabilities.
using ExpertChoiceRouter = Router<Softmax, ExpertChoice>;
template <class... More>
using ExpertChoiceLayer = MoELayer<ExpertChoiceRouter, ExpertFFN<ReLU>, More...>;
using ExpertChoiceMixture = ExpertChoiceLayer<>;

MOE_NAMESPACE_END
