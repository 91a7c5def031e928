#pragma once
/// @file
/// Mixtures in which tokens use different numbers of experts.

#include "moe/experts/wrappers.hpp"
#include "moe/layers/moe_layer.hpp"

MOE_NAMESPACE_BEGIN

/// Huang et al. 2024, "Harder tasks need more experts": the best experts until their probabilities sum to p, weighted
/// by these. (The paper's second loss, the entropy of the probabilities, is not here.)
using TopPRouter = Router<Softmax, TopP>;
template <class... More>
using TopPLayer = MoELayer<TopPRouter, ExpertFFN<SwiGLU>, More...>;
using TopPMixture = TopPLayer<SwitchBalanceLoss>;
/// The paper's p, and no bound on the number of experts but E.
inline TopPRouter top_p_router(int experts, double p = 0.4) {
  return TopPRouter{TopP{.p = p, .cap = experts}};
}

/// Every expert that scores above a threshold, which update_balance moves so that tokens get k on average: this
/// library's own. Each token decides for itself, so it suits text written token by token.
using MeanCountRouter = Router<Sigmoid, Threshold, MeanCountBalancer, NormalizeSum>;
template <class... More>
using MeanCountLayer = MoELayer<MeanCountRouter, ExpertFFN<SwiGLU>, More...>;
using MeanCount = MeanCountLayer<>;
/// One to `cap` experts a token, k on average. At first about half the experts are above the threshold.
inline MeanCountRouter mean_count_router(double k, int cap, double rate = 1e-3) {
  return MeanCountRouter{Threshold{.threshold = 0.5, .cap = cap, .floor = 1}, MeanCountBalancer{.k = k, .rate = rate}};
}

/// The same with a threshold for each expert, so that each gets k / E of the tokens: expert choice that looks at no
/// later token.
using QuotaRouter = Router<Sigmoid, Threshold, QuotaBalancer, NormalizeSum>;
template <class... More>
using QuotaLayer = MoELayer<QuotaRouter, ExpertFFN<SwiGLU>, More...>;
using Quota = QuotaLayer<>;
inline QuotaRouter quota_router(double k, int cap, double rate = 1e-3) {
  return QuotaRouter{Threshold{.threshold = 0.5, .cap = cap, .floor = 1}, QuotaBalancer{.k = k, .rate = rate}};
}

/// Lu et al. 2024, "Not all experts are equal": Mixtral whose second expert is skipped where its weight is below beta
/// times the first's. Give the layer `dynamic_skip_capacity()`, so that the first then has all the weight.
using DynamicSkipRouter = Router<Softmax, TopK<2>, NormalizeSum, DynamicSkip>;
template <class... More>
using DynamicSkipLayer = MoELayer<DynamicSkipRouter, ExpertFFN<SwiGLU>, CapacityPolicy<Dropless>, More...>;
using DynamicSkipMixture = DynamicSkipLayer<>;
inline CapacityPolicy<Dropless> dynamic_skip_capacity() {
  return {.renormalize = Renormalize::to_one};
}

/// LongCat-Flash (Meituan 2025): twelve choices among 512 experts and 256 that give back their input; weights are the
/// probabilities, scaled. Its controller of the bias (a PID) is not here.
using LongCatFlashRouter = Router<Softmax, TopK<12>, BiasBalancer, Scale>;
template <class... More>
using LongCatFlashLayer = MoELayer<LongCatFlashRouter, WithExtraExperts<ExpertFFN<SwiGLU>, 256>, More...>;
using LongCatFlash = LongCatFlashLayer<>;
inline LongCatFlashRouter longcat_flash_router() {
  return LongCatFlashRouter{Scale{6.0}};
}
/// 512 experts with weights and 256 without.
inline constexpr MoEConfig longcat_flash{.hidden = 6144, .intermediate = 2048, .experts = 768};

MOE_NAMESPACE_END
