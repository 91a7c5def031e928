#pragma once
/// @file
/// Llama 4 (Meta 2025).
///
/// One expert by the largest logit, whose sigmoid multiplies the expert's input, not its output; and a shared expert.
/// Scores are the logits: a balance loss needs Probability::softmax.

#include "moe/layers/moe_layer.hpp"

MOE_NAMESPACE_BEGIN

using Llama4Router = Router<Identity, TopK<1>, SigmoidOfChosen>;
template <class... More>
using Llama4Layer = MoELayer<Llama4Router, ExpertFFN<SwiGLU>, WeightOnInput, SharedExperts<1>, More...>;
using Llama4 = Llama4Layer<>;
inline constexpr MoEConfig llama_4_scout{.hidden = 5120, .intermediate = 8192, .experts = 16};
/// In every other layer.
inline constexpr MoEConfig llama_4_maverick{.hidden = 5120, .intermediate = 8192, .experts = 128};

MOE_NAMESPACE_END
