#pragma once
/// @file
/// The whole library, in the order in which data flows through it. Beside it stand moe/io/ for files, other
/// compositions in moe/models/, and moe/core/interop.hpp for Eigen and std::span.

#include "moe/version.hpp"

// Values: views, batches, contexts, parameters
#include "moe/core/assignments.hpp"
#include "moe/core/batch.hpp"
#include "moe/core/bfloat16.hpp"
#include "moe/core/capture.hpp"
#include "moe/core/context.hpp"
#include "moe/core/error.hpp"
#include "moe/core/float16.hpp"
#include "moe/core/parameter.hpp"

// Tokens to logits
#include "moe/routing/linear_logits.hpp"
#include "moe/routing/mlp_logits.hpp"
#include "moe/routing/noisy_logits.hpp"
#include "moe/routing/sequence_logits.hpp"
#include "moe/routing/simple_logits.hpp"
#include "moe/routing/structured_logits.hpp"
#include "moe/routing/unit_logits.hpp"

// Logits to choices and weights
#include "moe/routing/balanced_assignment.hpp"
#include "moe/routing/balancer.hpp"
#include "moe/routing/choice_key.hpp"
#include "moe/routing/expert_choice.hpp"
#include "moe/routing/noise.hpp"
#include "moe/routing/router.hpp"
#include "moe/routing/scoring.hpp"
#include "moe/routing/sinkhorn.hpp"
#include "moe/routing/skipping.hpp"
#include "moe/routing/sparse_mixer.hpp"
#include "moe/routing/table.hpp"
#include "moe/routing/top_k.hpp"
#include "moe/routing/weighting.hpp"

// Choices to rows by expert
#include "moe/dispatch/capacity.hpp"
#include "moe/dispatch/dispatch.hpp"
#include "moe/dispatch/published_capacities.hpp"

// Rows to rows
#include "moe/experts/ffn.hpp"
#include "moe/experts/wrappers.hpp"

// Rows back to tokens
#include "moe/combine/combine.hpp"
#include "moe/combine/shared_experts.hpp"

// How even the loads are, and what makes them so
#include "moe/balance/choice_cross_entropy.hpp"
#include "moe/balance/entropy_loss.hpp"
#include "moe/balance/gate_losses.hpp"
#include "moe/balance/load.hpp"
#include "moe/balance/localised_balance_loss.hpp"
#include "moe/balance/losses.hpp"
#include "moe/balance/mutual_information_loss.hpp"
#include "moe/balance/pooled_balance_loss.hpp"
#include "moe/balance/quantile_bias.hpp"
#include "moe/balance/straight_through_loss.hpp"

// All of it as one object, and what stands around it
#include "moe/layers/checkpointing.hpp"
#include "moe/layers/mixture_of_depths.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/packed.hpp"
#include "moe/layers/residual.hpp"
#include "moe/layers/sequential.hpp"
#include "moe/layers/transformer_block.hpp"

// Attention
#include "moe/attention/mixture_of_attention_heads.hpp"
#include "moe/attention/routed_attention.hpp"
#include "moe/attention/self_attention.hpp"
#include "moe/attention/switch_head.hpp"

// Published compositions
#include "moe/models/deepseek.hpp"
#include "moe/models/gshard.hpp"
#include "moe/models/mixtral.hpp"
#include "moe/models/mixture_of_depths.hpp"
#include "moe/models/switch.hpp"

// Training
#include "moe/train/clip.hpp"
#include "moe/train/loss_scale.hpp"
#include "moe/train/optimizer.hpp"
#include "moe/train/schedule.hpp"
