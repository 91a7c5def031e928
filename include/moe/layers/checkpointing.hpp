#pragma once
/// @file
/// `ActivationCheckpointing`: what a layer keeps for backward, and what backward computes again.

#include "moe/core/kind.hpp"

MOE_NAMESPACE_BEGIN

/// What backward recomputes instead of keeping it. Numbers a token, for K choices with SwiGLU:
///
///     nothing     K (H + 2I)  the gathered rows, and gate and up before the activation
///     experts     K H         gate and up are computed again: two thirds of the experts' forward pass
///     everything  0           rows are gathered again, too, and the input's jitter drawn again
///
/// On devices ExpertFFN reads tokens by the plan's numbers, and gathered rows are kept nowhere: the levels `experts`
/// and `everything` then differ only where there is an input map. Output, routing, a latent space's values and what
/// branches keep come on top in all of them.
enum class Recompute { nothing, experts, everything };

/// Layer policy: saves memory at the cost of time; gradients are the same bits (Chen et al. 2016, "Training deep nets
/// with sublinear memory cost"). Give the value at construction, or change it with get<ActivationCheckpointing>():
///
///     using Block = moe::MoELayer<Router, moe::ExpertFFN<moe::SwiGLU>, moe::ActivationCheckpointing>;
///     Block block(config, moe::ActivationCheckpointing{moe::Recompute::everything});
///
/// Experts of one's own need `workspace`, and may have `recompute`: see ExpertFFN. Where an expert's output is needed
/// for the weight's gradient (experts without `backward_weighted`), or `recompute` is missing, forward runs again.
struct ActivationCheckpointing {
  using policy = kind::recompute;
  Recompute level = Recompute::experts;
};

namespace detail {

struct NoCheckpointing {
  static constexpr Recompute level = Recompute::nothing;
};

}  // namespace detail

MOE_NAMESPACE_END
