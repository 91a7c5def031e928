#!/usr/bin/env python3
"""Training of transformers' own modules: forward, and backward to the tokens, the router and all experts.

Weights' gradients are kept and added to in place, as over microbatches; there is no optimiser.
"""

import sys

import measure

parser = measure.parser(__doc__)
parser.set_defaults(tokens="2048", repeats=5)
parser.add_argument("--implementations", default="grouped_mm,eager", help="of eager and grouped_mm")
options = measure.parse(parser)

import torch
import transformers

import modules

DTYPE = modules.DTYPES[options.dtype]


def time_one(module, name, tokens):
    title = f"transformers {transformers.__version__} {name}"
    x = torch.randn(1, tokens, options.shape.hidden).to(DTYPE)
    x[..., 0] = 1  # the router's first column is a bias
    x.requires_grad_()
    dy = torch.randn(1, tokens, options.shape.hidden).to(DTYPE)

    def step(_):
        x.grad = None
        module(x).backward(dy)

    try:
        module.experts.config._experts_implementation = name
        step(0)
        if not all(parameter.grad is not None for parameter in module.parameters()):
            raise ValueError("some of its parameters get no gradient")
        if not torch.isfinite(x.grad).all():
            raise ValueError("its gradient is not finite here")
        times = measure.seconds(step, 1, options.repeats)
    except (RuntimeError, ValueError) as error:
        measure.report_failure(title, tokens, error)
        return
    # So many tokens visit every expert.
    touched = options.shape.touched_bytes(options.shape.experts, options.dtype, "train")
    measure.report(title, options, tokens, times, touched, "train")


def main():
    if not options.shape.gated:
        sys.exit("the switch layer of transformers writes into its input, which needs a gradient here")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    module = modules.BUILDERS[options.shape.router](options.shape).train()
    modules.fill(module, options.skew)
    module = module.to(DTYPE)
    for tokens in options.tokens:
        for name in options.implementations.split(","):
            time_one(module, name, tokens)


main()
