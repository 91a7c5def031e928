"""What the peers' scripts share: their arguments, timing, and the line that they print a measurement."""

import argparse
import json
import math
import os
import statistics
import time

import shapes


def parser(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shape", default="dsmoe-s", help=shapes.SYNTAX)
    parser.add_argument("--dtype", default="f32", choices=shapes.BYTES)
    parser.add_argument("--tokens", default="512,2048", help="numbers of tokens, separated by commas")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--skew", type=float, default=0, help="exponent of the experts' popularity: 1 is Zipf's law")
    parser.add_argument("--repeats", type=int, default=7, help="timed passes")
    return parser


def parse(parser):
    """The arguments. Called before torch is imported, since OpenMP reads its settings once."""
    options = parser.parse_args()
    try:
        options.shape = shapes.parse(options.shape)
        options.tokens = [int(tokens) for tokens in options.tokens.split(",")]
    except ValueError as error:
        parser.error(str(error))
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    os.environ.setdefault("MKL_NUM_THREADS", str(options.threads))
    return options


def home():
    """Where setup.sh put the peers."""
    return os.environ.get("PEERS_HOME", os.path.expanduser("~/.cache/moe-peers"))


def plan(tokens):
    """The number of different inputs, and whether the last-level cache is flushed before each.

    A few tokens touch few experts, which would stay in the cache from one pass to the next.
    """
    if tokens <= 4:
        return 12, True
    if tokens <= 32:
        return 6, True
    return 1, False


def skew_router(weight, skew):
    """Makes an expert's popularity fall with its rank, for inputs whose first value is 1."""
    if skew:
        for expert in range(weight.shape[0]):
            weight[expert, 0] = -skew * math.log(expert + 1)


def seconds(run, inputs, repeats, flush=None, budget=9.0):
    """Least and median seconds of run(i), each averaged over the inputs; stops early beyond the budget."""
    for i in range(min(inputs, 2)):
        run(i)
    times = [[] for _ in range(inputs)]
    end = time.perf_counter() + budget
    for repeat in range(repeats):
        for i in range(inputs):
            if flush:
                flush()
            start = time.perf_counter()
            run(i)
            times[i].append(time.perf_counter() - start)
        if repeat >= 2 and time.perf_counter() > end:
            break
    least = statistics.fmean(min(each) for each in times)
    return least, statistics.fmean(statistics.median(each) for each in times)


def report(name, options, tokens, times, touched_bytes, mode="forward"):
    """Prints a measurement as compare.py reads it."""
    least, median = times
    flops = options.shape.flops(tokens, mode)
    line = {
        "impl": name,
        "shape": options.shape.name,
        "dtype": options.dtype,
        "threads": options.threads,
        "T": tokens,
        "min_s": least,
        "med_s": median,
        "gflops": flops / least * 1e-9,
        "gbs": touched_bytes / least * 1e-9,
        "bytes": touched_bytes,
    }
    print(json.dumps(line), flush=True)


def report_failure(name, tokens, reason):
    """Prints why a peer has no measurement."""
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    print(json.dumps({"impl": name, "T": tokens, "failed": lines[0][:200]}), flush=True)
