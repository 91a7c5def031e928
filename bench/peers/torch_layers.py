#!/usr/bin/env python3
"""Whole layers in torch: transformers' own modules, and a plain loop over experts that sorts the tokens first."""

import measure

parser = measure.parser(__doc__)
parser.add_argument("--implementations", default="grouped_mm,loop", help="of eager, grouped_mm, batched_mm and loop")
options = measure.parse(parser)

import torch
import torch.nn.functional as F
import transformers

import modules

DTYPE = modules.DTYPES[options.dtype]
COPIED = 1.5e9  # bytes of weights that batched_mm may copy: it copies an expert for each token that visits it


class Layer:
    """A module of transformers, and its parts as the loop needs them."""

    def __init__(self, shape):
        self.shape = shape
        self.module = modules.BUILDERS[shape.router](shape).eval()
        modules.fill(self.module, options.skew)
        self.module = self.module.to(DTYPE)
        experts = self.module.experts
        if shape.gated:
            self.up, self.down = experts.gate_up_proj, experts.down_proj
        else:
            each = [experts[f"expert_{e}"] for e in range(shape.experts)]
            self.up, self.down = [e.wi.weight for e in each], [e.wo.weight for e in each]

    def choose(self, implementation):
        """Selects one of transformers' ways to compute experts."""
        if self.shape.gated:
            self.module.experts.config._experts_implementation = implementation
        elif implementation != "eager":
            raise ValueError("the switch layer of transformers has the eager way only")

    def __call__(self, x):
        result = self.module(x)
        return result[0] if isinstance(result, tuple) else result

    def route(self, x):
        """Weights and experts, each (tokens, top_k)."""
        if self.shape.gated:
            _, weights, experts = self.module.gate(x.view(-1, self.shape.hidden))
            return weights.to(x.dtype), experts
        chosen, weights, _ = self.module.router(x)
        return weights.view(-1, 1).to(x.dtype), chosen.view(-1, self.shape.experts).argmax(-1, keepdim=True)

    def activate(self, hidden):
        if not self.shape.gated:
            return F.relu(hidden)
        gate, up = hidden.chunk(2, -1)
        return F.silu(gate) * up

    def loop(self, x):
        """Sorts by expert, then two products an expert."""
        rows = x.view(-1, self.shape.hidden)
        weights, experts = self.route(x)
        order = experts.reshape(-1).argsort()
        token = order // self.shape.top_k
        weights = weights.reshape(-1)[order]
        counts = torch.bincount(experts.reshape(-1), minlength=self.shape.experts).tolist()
        out = torch.zeros_like(rows)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                part = slice(start, start + count)
                hidden = self.activate(F.linear(rows[token[part]], self.up[expert]))
                out.index_add_(0, token[part], F.linear(hidden, self.down[expert]) * weights[part, None])
                start += count
        out = out.view_as(x)
        return out + self.module.shared_experts(x) if self.shape.shared else out


def implementation(layer, name):
    """A name for the table, and what to time."""
    if name == "loop":
        return f"torch {torch.__version__.split('+')[0]} loop", layer.loop
    layer.choose(name)
    return f"transformers {transformers.__version__} {name}", layer


def time_one(layer, name, tokens, inputs):
    flush = spoiler.sum if measure.plan(tokens)[1] else None
    title = f"torch {name}"
    try:
        title, run = implementation(layer, name)
        copied = tokens * options.shape.top_k * options.shape.expert_bytes(options.dtype)
        if name == "batched_mm" and copied > COPIED:
            raise ValueError(f"would copy {copied * 1e-9:.1f} GB of weights for {tokens} tokens")
        if not torch.isfinite(run(inputs[0])).all():
            raise ValueError("its result is not finite here")
        times = measure.seconds(lambda i: run(inputs[i]), len(inputs), options.repeats, flush)
    except (RuntimeError, ValueError) as error:
        measure.report_failure(title, tokens, error)
        return
    distinct = sum(len(layer.route(x)[1].unique()) for x in inputs) / len(inputs)
    measure.report(title, options, tokens, times, options.shape.touched_bytes(distinct, options.dtype))


def main():
    layer = Layer(options.shape)
    for tokens in options.tokens:
        inputs = [torch.randn(1, tokens, options.shape.hidden).to(DTYPE) for _ in range(measure.plan(tokens)[0])]
        for x in inputs:
            x[..., 0] = 1  # the router's first column is a bias
        for name in options.implementations.split(","):
            time_one(layer, name, tokens, inputs)


torch.set_num_threads(options.threads)
torch.manual_seed(0)
spoiler = torch.ones(32 << 20)  # 128 MiB, more than the last-level cache
with torch.inference_mode():
    main()
