#!/usr/bin/env python3
"""JetMoE's mixture of attention heads, as transformers has it, at the sizes of bench_attention."""

import argparse
import json
import os
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--hidden", type=int, default=1024, help="width of tokens")
parser.add_argument("--key-heads", type=int, default=8, help="heads of keys, which the experts share")
parser.add_argument("--head-width", type=int, default=64)
parser.add_argument("--experts", type=int, default=8)
parser.add_argument("--chosen", type=int, default=2, help="experts a token")
parser.add_argument("--tokens", default="512,2048", help="lengths of the one sequence, separated by commas")
parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"], help="transformers' implementation")
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--seconds", type=float, default=3, help="time for each measurement")
options = parser.parse_args()
os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))  # before torch: OpenMP reads it once

import torch
import transformers
from transformers.models.jetmoe.configuration_jetmoe import JetMoeConfig
from transformers.models.jetmoe.modeling_jetmoe import JetMoeAttention, JetMoeRotaryEmbedding


def least(f):
    f()
    times = []
    while len(times) < 5 or sum(times) < options.seconds:
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(tokens):
    config = JetMoeConfig(
        hidden_size=options.hidden,
        num_key_value_heads=options.key_heads,
        kv_channels=options.head_width,
        num_local_experts=options.experts,
        num_experts_per_tok=options.chosen,
        attn_implementation=options.attention,
    )
    layer = JetMoeAttention(config, layer_idx=0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    x = torch.randn(1, tokens, options.hidden, requires_grad=True)
    dy = torch.randn(1, tokens, options.hidden)
    rotary = JetMoeRotaryEmbedding(config)
    places = rotary(x, torch.arange(tokens)[None])
    mask = None
    if options.attention == "eager":  # which takes no other word for causal
        mask = torch.full((tokens, tokens), float("-inf")).triu(1)[None, None]

    def forward():
        with torch.no_grad():
            layer(x, attention_mask=mask, position_embeddings=places)

    def train():
        layer.zero_grad(set_to_none=False)
        x.grad = None
        layer(x, attention_mask=mask, position_embeddings=places)[0].backward(dy)

    for what, f in (("forward", forward), ("train", train)):
        line = {
            "impl": f"transformers {transformers.__version__} JetMoE, {options.attention}",
            "what": what,
            "T": tokens,
            "threads": options.threads,
            "min_s": least(f),
        }
        print(json.dumps(line), flush=True)


torch.set_num_threads(options.threads)
for each in options.tokens.split(","):
    measure(int(each))
