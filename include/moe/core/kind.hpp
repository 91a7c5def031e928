#pragma once
/// @file
/// The categories of policies. A policy names its own: `using policy = moe::kind::scoring;`.

#include "moe/version.hpp"

MOE_NAMESPACE_BEGIN

namespace kind {
struct logits {};        ///< LogitSource: tokens to logits (linear, ...)
struct row_map {};       ///< a map on the router's input or on the logits (jitter, soft cap, ...); any number
struct scoring {};       ///< logits to scores (softmax, sigmoid, ...)
struct choice_key {};    ///< changes what the selection sees, never a weight (group limit, ...); any number
struct balancer {};      ///< a bias on the choice, updated once a step
struct selection {};     ///< scores to choices (top-k, expert choice, ...)
struct weighting {};     ///< scores of the chosen to combine weights (normalise, scale, ...); a chain
struct skipping {};      ///< takes choices away by their weights (random second expert, ...); any number
struct router {};        ///< all of the above, composed
struct capacity {};      ///< how many assignments an expert takes
struct experts {};       ///< rows to rows
struct activation {};    ///< inside an FFN
struct input_map {};     ///< a map on the layer's input, seen by router and experts alike (jitter)
struct latent {};        ///< projections around the experts, which then work at another width
struct weight_place {};  ///< where a combine weight acts: on the expert's output or on its input
struct recompute {};     ///< what backward computes again instead of keeping it
struct branch {};        ///< beside the experts (shared experts); any number
struct output {};        ///< on the layer's output (scale, norm, bias); any number
struct loss {};          ///< auxiliary losses; any number
struct adapters {};      ///< small trained changes of a frozen linear map
struct adapter_loss {};  ///< losses on what adapters give; any number
struct predictor {};     ///< foretells which tokens a choice over a sequence will take
struct space {};         ///< On<Space>
struct precision {};     ///< Precision<Storage, Accumulate>
}  // namespace kind

MOE_NAMESPACE_END
