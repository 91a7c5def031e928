#!/usr/bin/env python3
"""Whole layers in torch on a GPU: transformers' modules with grouped products, torch._grouped_mm by hand, and vLLM's
fused Triton kernels where vLLM is installed. The first line is the peak of a large product and the bandwidth of copies.
"""

import argparse
import json
import statistics

import torch
import torch.nn.functional as F

import measure
import modules
import shapes

FLUSHED = 8  # up to so many tokens the caches are emptied before each pass
DEVICE = "cuda"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="qwen3-235b", help=shapes.SYNTAX)
    parser.add_argument("--mode", default="forward", choices=shapes.MODES)
    parser.add_argument("--tokens", default="512,8192", help="numbers of tokens, separated by commas")
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "f32"))
    parser.add_argument("--repeats", type=int, default=7, help="timed passes, of which the median counts")
    parser.add_argument("--implementations", default="transformers,grouped_mm,vllm")
    options = parser.parse_args()
    options.shape = shapes.parse(options.shape)
    options.tokens = [int(tokens) for tokens in options.tokens.split(",")]
    options.threads = 1
    return options


def seconds(run, repeats, flush=None):
    """Least and median seconds of run() by CUDA's events."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        if flush is not None:
            flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return min(times), statistics.median(times)


def limits():
    """As bench_device_limits measures them."""
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product = seconds(lambda: a @ b, 10)[0]
    source, target = (torch.empty(64 << 20, device=DEVICE, dtype=torch.float64) for _ in range(2))
    copy = seconds(lambda: target.copy_(source), 10)[0]
    peak, bandwidth = 2e-12 * 8192**3 / product, 2e-9 * source.nbytes / copy
    print(json.dumps({"impl": "limits", "bf16_tflops": peak, "copy_gbs": bandwidth}), flush=True)


class Layer:
    """A module of transformers with random weights, and its parts as the others need them."""

    def __init__(self, shape, dtype):
        self.shape = shape
        torch.set_default_dtype(dtype)
        with torch.device(DEVICE):
            self.module = modules.BUILDERS[shape.router](shape)
        for parameter in self.module.parameters():
            parameter.data.normal_(std=0.02)
        self.module.experts.config._experts_implementation = "grouped_mm"
        self.up, self.down = self.module.experts.gate_up_proj, self.module.experts.down_proj

    def route(self, x):
        """Weights and experts, each (tokens, top_k)."""
        _, weights, experts = self.module.gate(x)
        return weights.to(x.dtype), experts

    def with_shared(self, x, out):
        return out + self.module.shared_experts(x) if self.shape.shared else out

    def transformers(self, x):
        result = self.module(x.view(1, -1, self.shape.hidden))
        return (result[0] if isinstance(result, tuple) else result).view_as(x)

    def grouped_mm(self, x):
        """Sorts by expert, two grouped products, and a weighted sum; sizes stay on the device."""
        weights, experts = self.route(x)
        order = experts.reshape(-1).argsort(stable=True)
        token = order // self.shape.top_k
        counts = F.one_hot(experts.reshape(-1), self.shape.experts).sum(0)
        offsets = counts.cumsum(0).to(torch.int32)
        gate, up = torch._grouped_mm(x[token], self.up.transpose(-2, -1), offs=offsets).chunk(2, -1)
        rows = torch._grouped_mm(F.silu(gate) * up, self.down.transpose(-2, -1), offs=offsets)
        rows = rows * weights.reshape(-1)[order, None]
        return self.with_shared(x, torch.zeros_like(x).index_add(0, token, rows))

    def vllm(self, x):
        from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts

        if torch.is_grad_enabled():
            raise ValueError("has no backward")
        weights, experts = self.route(x)
        out = fused_experts(x, self.up.data, self.down.data, weights.float(), experts.to(torch.int32))
        return self.with_shared(x, out)


def title(name):
    if name == "vllm":
        import vllm

        return f"vLLM {vllm.__version__} fused_experts (Triton)"
    if name == "transformers":
        import transformers

        return f"transformers {transformers.__version__} grouped_mm"
    return f"torch {torch.__version__.split('+')[0]} _grouped_mm"


def time_one(layer, name, tokens, options, flush):
    x = torch.randn(tokens, layer.shape.hidden, device=DEVICE)
    dy = torch.randn_like(x)
    run = getattr(layer, name)
    label = name
    try:
        label = title(name)
        if options.mode == "train":
            x.requires_grad_()

            def passes():
                run(x).backward(dy)

        else:

            def passes():
                with torch.no_grad():
                    run(x)

        times = seconds(passes, options.repeats, flush if tokens <= FLUSHED else None)
    except (RuntimeError, ValueError, ImportError, AttributeError, TypeError) as error:
        measure.report_failure(label, tokens, error)
        torch.cuda.empty_cache()
        return
    distinct = len(layer.route(x)[1].unique())
    touched = options.shape.touched_bytes(distinct, options.dtype, options.mode)
    measure.report(label, options, tokens, times, touched, options.mode)


def main():
    options = arguments()
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU here that torch can use.")
    torch.manual_seed(0)
    limits()
    layer = Layer(options.shape, modules.DTYPES[options.dtype])
    flush = torch.empty(512 << 20, device=DEVICE, dtype=torch.uint8)
    for tokens in options.tokens:
        for name in options.implementations.split(","):
            time_one(layer, name, tokens, options, flush)


if __name__ == "__main__":
    main()
