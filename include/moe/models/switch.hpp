#pragma once
/// @file
/// Switch Transformer (Fedus, Zoph and Shazeer 2021, "Switch Transformers: scaling to trillion parameter models with
/// simple and efficient sparsity").
///
/// Each token goes to its single best expert and is weighted with the probability of that choice, which is how the
/// router learns. Experts take at most capacity_factor * T / E tokens in token order; those left over pass by on the
/// residual alone. An auxiliary loss keeps the loads even; while training, the router's input is jittered by one
/// percent.

#include "moe/layers/moe_layer.hpp"

MOE_NAMESPACE_BEGIN

using SwitchRouter = Router<Softmax, TopK<1>, Jitter>;
/// More policies (On, Precision, another loss) may follow.
template <class... More>
using SwitchLayer = MoELayer<SwitchRouter, ExpertFFN<ReLU>, CapacityPolicy<Drop>, SwitchBalanceLoss, More...>;
using Switch = SwitchLayer<>;

/// Switch-Base with 128 experts (table 1 and section 3).
inline constexpr MoEConfig switch_base_128{.hidden = 768, .intermediate = 3072, .experts = 128};

MOE_NAMESPACE_END
