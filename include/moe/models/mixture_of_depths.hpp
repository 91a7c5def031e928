#pragma once
/// @file
/// Mixture of depths and experts, MoDE (Raposo et al. 2024, "Mixture-of-Depths", section 4.3), in its two forms.

#include "moe/experts/wrappers.hpp"
#include "moe/layers/mixture_of_depths.hpp"

MOE_NAMESPACE_BEGIN

/// Staged: the tokens that a mixture of depths takes are routed among experts. `MoE` is an MoELayer, or a block that
/// holds one.
template <class MoE = MoELayer<>, class... Policies>
using StagedMoDE = MixtureOfDepths<MoE, Policies...>;

/// Integrated: `null_experts` of the E experts compute nothing, and each expert takes its best tokens, those included.
/// A token so learns to choose the residual path, by the router that it chooses experts by. It gives the update:
/// put `Residual` around it.
template <int null_experts, class... Policies>
using IntegratedMoDE =
    MoELayer<Router<Softmax, ExpertChoice>, WithExtraExperts<ExpertFFN<SwiGLU>, null_experts, NullOutput>, Policies...>;

MOE_NAMESPACE_END
