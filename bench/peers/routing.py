#!/usr/bin/env python3
"""Routing alone in torch and transformers, without experts: choosing, sorting, gathering and combining."""

import measure

parser = measure.parser(__doc__)
parser.set_defaults(shape="dsv3-s", repeats=15)
options = measure.parse(parser)

import json

import torch
import torch.nn.functional as F


def router(shape):
    """The gate of the model that the shape is named after."""
    if shape.router == "mixtral":
        from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralTopKRouter

        sizes = {"num_local_experts": shape.experts, "num_experts_per_tok": shape.top_k}
        return MixtralTopKRouter(MixtralConfig(hidden_size=shape.hidden, **sizes))
    sizes = {"n_routed_experts": shape.experts, "num_experts_per_tok": shape.top_k}
    if shape.router == "deepseek-v2":
        from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Config, DeepseekV2TopkRouter

        config = DeepseekV2Config(
            hidden_size=shape.hidden, topk_method="greedy", routed_scaling_factor=1.0, n_shared_experts=1, **sizes
        )
        return DeepseekV2TopkRouter(config)
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Config, DeepseekV3TopkRouter

    config = DeepseekV3Config(hidden_size=shape.hidden, n_group=shape.groups, topk_group=shape.kept_groups, **sizes)
    return DeepseekV3TopkRouter(config)


def steps(shape, tokens, gate):
    """What a mixture does around its experts, step by step: a name and a function."""
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    x = torch.randn(tokens, shape.hidden)
    logits = F.linear(x, gate.weight)
    chosen = gate(x)[2].reshape(-1)
    order = chosen.argsort()
    token = order // shape.top_k
    inverse = order.argsort()
    rows = x.to(dtype)
    results = torch.randn(tokens * shape.top_k, shape.hidden).to(dtype)
    weights = torch.rand(tokens * shape.top_k, 1).to(dtype)
    out = torch.zeros(tokens, shape.hidden, dtype=dtype)

    def offsets():
        return torch.bincount(chosen, minlength=shape.experts).cumsum(0)

    def combine_by_gather():
        return (results * weights)[inverse].view(tokens, shape.top_k, -1).sum(1)

    return {
        "gate: logits and choice": lambda: gate(x),
        "logits alone": lambda: F.linear(x, gate.weight),
        "top-k alone": lambda: logits.topk(shape.top_k, -1, sorted=False),
        "sort by expert": lambda: chosen.argsort(),
        "counts and offsets": offsets,
        "gather rows": lambda: rows[token],
        "combine by gathering": combine_by_gather,
        "combine by index_add": lambda: out.zero_().index_add_(0, token, results * weights),
    }


def main():
    shape = options.shape
    if not shape.gated:
        raise SystemExit("the switch router of transformers routes inside its layer only")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    gate = router(shape)
    gate.weight.data.normal_(0, 0.02)
    measure.skew_router(gate.weight.data, options.skew)
    for tokens in options.tokens:
        for name, step in steps(shape, tokens, gate).items():
            least, median = measure.seconds(lambda i: step(), 1, options.repeats, budget=4)
            line = {"step": name, "shape": shape.name, "T": tokens, "min_s": least, "med_s": median}
            print(json.dumps(line | {"us_per_token": least * 1e6 / tokens}), flush=True)


with torch.inference_mode():
    main()
