#!/usr/bin/env python3
"""A step of torch's fused AdamW, beside bench_optimizer: nanoseconds a parameter. Parameters of 16 bits have no masters
there; `--dtype f32` is the same arithmetic and the same bytes as ours."""

import argparse
import json
import os
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--parameters", default="1000000,16000000,64000000", help="numbers, separated by commas")
parser.add_argument("--dtype", default="f32", choices=("f32", "bf16", "f16"))
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--seconds", type=float, default=1, help="time for each measurement")
options = parser.parse_args()
os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))  # before torch: OpenMP reads it once

import torch

DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[options.dtype]


def measure(count):
    weight = torch.nn.Parameter(torch.randn(count).to(DTYPE))
    weight.grad = torch.randn(count).to(DTYPE)
    optimizer = torch.optim.AdamW([weight], lr=1e-4, fused=True)
    optimizer.step()
    times = []
    while len(times) < 5 or sum(times) < options.seconds:
        start = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - start)
    bytes_moved = 7 * weight.element_size()  # reads value, gradient and two moments, writes all but the gradient
    line = {
        "impl": f"torch {torch.__version__.split('+')[0]} AdamW(fused=True)",
        "what": "adamw",
        "dtype": options.dtype,
        "threads": options.threads,
        "parameters": count,
        "bytes_per_parameter": bytes_moved,
        "min_ns_parameter": min(times) * 1e9 / count,
        "med_ns_parameter": statistics.median(times) * 1e9 / count,
        "gbs": bytes_moved * count / min(times) * 1e-9,
    }
    print(json.dumps(line), flush=True)


torch.set_num_threads(options.threads)
for each in options.parameters.split(","):
    measure(int(each))
