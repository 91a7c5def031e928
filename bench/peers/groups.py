#!/usr/bin/env python3
"""The products of bench_groups in torch: one batched product for all groups, which have equally many rows."""

import argparse
import json
import os
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--hidden", type=int, default=2048, help="width of rows")
parser.add_argument("--groups", type=int, default=256, help="groups, each with matrices of its own")
parser.add_argument("--rows", type=int, default=8, help="of a group")
parser.add_argument("--ranks", default="4,16,64", help="of A and B, separated by commas")
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--seconds", type=float, default=1, help="time for each measurement")
options = parser.parse_args()
os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))  # before torch: OpenMP reads it once

import torch


def least(f):
    f()
    times = []
    while len(times) < 5 or sum(times) < options.seconds:
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(rank):
    groups, rows, hidden = options.groups, options.rows, options.hidden
    x = torch.randn(groups, rows, hidden)
    a, b = torch.randn(groups, rank, hidden), torch.randn(groups, hidden, rank)
    t, y, dx = torch.empty(groups, rows, rank), torch.empty_like(x), torch.empty_like(x)
    dt, da, db = torch.empty_like(t), torch.zeros_like(a), torch.zeros_like(b)

    def forward():
        torch.bmm(x, a.mT, out=t)
        torch.bmm(t, b.mT, out=y)

    def backward():
        torch.bmm(y, b, out=dt)
        db.baddbmm_(y.mT, t)
        torch.bmm(dt, a, out=dx)
        da.baddbmm_(dt.mT, x)

    flops = 4 * groups * rows * hidden * rank
    for what, f, work in (("forward", forward, flops), ("backward", backward, 2 * flops)):
        seconds = least(f)
        line = {
            "impl": f"torch {torch.__version__.split('+')[0]} bmm",
            "what": what,
            "hidden": hidden,
            "groups": groups,
            "rows": rows,
            "rank": rank,
            "threads": options.threads,
            "min_s": seconds,
            "gflops": work / seconds * 1e-9,
        }
        print(json.dumps(line), flush=True)


torch.set_num_threads(options.threads)
with torch.inference_mode():
    for each in options.ranks.split(","):
        measure(int(each))
