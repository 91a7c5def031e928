"""The mixtures of transformers' models, by the router that a shape names."""

import torch

import measure

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def mixtral(shape):
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
    )
    config._experts_implementation = "eager"
    return MixtralSparseMoeBlock(config)


def deepseek_v2(shape):
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Config, DeepseekV2Moe

    config = DeepseekV2Config(
        hidden_size=shape.hidden,
        moe_intermediate_size=shape.intermediate,
        n_routed_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        n_shared_experts=shape.shared,
        topk_method="greedy",
        routed_scaling_factor=1.0,
    )
    config._experts_implementation = "eager"
    return DeepseekV2Moe(config)


def deepseek_v3(shape):
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Config, DeepseekV3MoE

    config = DeepseekV3Config(
        hidden_size=shape.hidden,
        moe_intermediate_size=shape.intermediate,
        n_routed_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        n_shared_experts=shape.shared,
        n_group=shape.groups,
        topk_group=shape.kept_groups,
        norm_topk_prob=True,
    )
    config._experts_implementation = "eager"
    return DeepseekV3MoE(config)


def switch(shape):
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

    config = SwitchTransformersConfig(
        d_model=shape.hidden,
        d_ff=shape.intermediate,
        num_experts=shape.experts,
        expert_capacity=1 << 20,  # drops nothing
        dense_act_fn="relu",
        router_bias=False,
        dropout_rate=0.0,
    )
    return SwitchTransformersSparseMLP(config)


BUILDERS = {"mixtral": mixtral, "deepseek-v2": deepseek_v2, "deepseek-v3": deepseek_v3, "switch": switch}


def fill(layer, skew):
    """Small random values, repeated, since drawing them all takes longer than measuring."""
    block = torch.randn(1 << 20) * 0.02
    for name, parameter in layer.named_parameters():
        if "gate.weight" in name or "classifier" in name:
            parameter.data.copy_(torch.randn(parameter.shape) * 0.02)
            measure.skew_router(parameter.data, skew)
            continue
        flat = parameter.data.view(-1)
        for start in range(0, flat.numel(), block.numel()):
            end = min(flat.numel(), start + block.numel())
            flat[start:end] = block[: end - start]
