#!/usr/bin/env python3
"""Measures this machine's limits, each peer and a command of ours in turn, and prints one table.

Times move from minute to minute on shared machines, so that only rounds count in which all run one after the other. A
round whose own probe of the multiply-add peak is more than 5% under the best is rejected: others used the processor.

In decode the limits are measured between any two programs too: each is set beside the bandwidth around it, by its
median time, and against the best peer of the same round; medians over rounds of these shares and ratios are shown.

The command finds SHAPE, DTYPE, T and MODE in its environment and is formatted with {shape}, {dtype}, {tokens}, {mode},
{skew}, {hidden}, {intermediate}, {experts}, {top_k} and {shared}. It prints a line of JSON a measurement, with impl, T,
min_s, med_s, gbs or bytes, and where it has them stages, read_share and kept_bytes_per_token.

  bench/compare.py dsmoe-s f32 512,2048 -- \\
    build/bench/bin/bench_layer --mode {mode} --shape {shape} --tokens {tokens} --dtype {dtype} --json
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

import others
from peers import catalogue, shapes

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIMITS = ROOT / "build" / "bench" / "bin" / "bench_limits"
TOLERANCE = 0.05  # of the peak, below which a round is rejected


def measure_limits(threads):
    """The peaks and the read bandwidth now; None where bench_limits is not built."""
    if not LIMITS.exists():
        return None
    done = subprocess.run(
        [str(LIMITS), "--json"], env=catalogue.environment(threads), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def our_command(template, shape, dtype, tokens, skew, mode):
    values = {
        "shape": shape.name,
        "dtype": dtype,
        "tokens": ",".join(map(str, tokens)),
        "mode": mode,
        "skew": skew,
        "hidden": shape.hidden,
        "intermediate": shape.intermediate,
        "experts": shape.experts,
        "top_k": shape.top_k,
        "shared": shape.shared,
    }
    return [part.format(**values) for part in template]


def measure_ours(template, shape, dtype, tokens, threads, skew, mode):
    settings = catalogue.environment(threads)
    settings |= {"SHAPE": shape.name, "DTYPE": dtype, "T": ",".join(map(str, tokens)), "MODE": mode}
    return catalogue.run(our_command(template, shape, dtype, tokens, skew, mode), settings, 600, "moe")


def measure_round(
    shape, dtype, tokens, template, threads, skew=0.0, repeats=7, progress=lambda what: None, mode="forward"
):
    """One round: limits, ours, the peers, and the limits again. Every line says whose it is.

    In decode the limits are measured behind each, and each line has the larger bandwidth of before and behind.
    """
    result = {"limits": [], "lines": []}
    watch = others.Watch()

    def take_limits():
        progress("limits")
        limits = measure_limits(threads)
        if limits:
            result["limits"].append(limits)

    def add(found, ours):
        if mode == "decode":
            take_limits()
            around = [limits["gbs"] for limits in result["limits"][-2:]]
            found = [{"around_gbs": max(around, default=None), **line} for line in found]
        result["lines"] += [{"ours": ours, **line} for line in found]

    take_limits()
    if template:
        progress("ours")
        add(measure_ours(template, shape, dtype, tokens, threads, skew, mode), True)
    for peer in catalogue.PEERS:
        if peer.suits(shape, dtype, mode):
            progress(peer.name)
            add(catalogue.measure(peer, shape, dtype, tokens, threads, skew, repeats), False)
    if mode != "decode":
        take_limits()
    result["others"] = watch.share()
    return result


def peak(limits, dtype):
    return limits["gflops" if dtype == "f32" else f"{dtype}_gflops"]


def probe(measured, dtype):
    """A round's own probe: the lower of its two peaks."""
    return min((peak(limits, dtype) for limits in measured["limits"]), default=0)


def keep(rounds, dtype, best=0.0):
    """The rounds that nobody disturbed: their probes reach the best of them, and `best`, but for the tolerance."""
    best = max([best, *(probe(each, dtype) for each in rounds)])
    return [each for each in rounds if probe(each, dtype) >= (1 - TOLERANCE) * best]


def of_round(measured, tokens):
    """The lines of a round that are times of so many tokens."""
    return [line for line in measured["lines"] if line.get("T") == tokens and "failed" not in line]


def median(values):
    return statistics.median(values) if values else None


def moved(line):
    return line["bytes"] if "bytes" in line else line["gbs"] * line["min_s"] * 1e9


def read_share(line):
    """Of the bandwidth around it: as the program itself found it pass by pass, or by its median time."""
    if "read_share" in line or not line.get("around_gbs"):
        return line.get("read_share")
    return moved(line) * 1e-9 / line["med_s"] / line["around_gbs"]


def paired_ratio(kept, row):
    """The median over rounds of the best peer's median time over this one's."""
    ratios = []
    for lines in (of_round(each, row["T"]) for each in kept):
        peers = [line["med_s"] for line in lines if not line["ours"]]
        own = [line["med_s"] for line in lines if (line["impl"], line["ours"]) == (row["impl"], row["ours"])]
        if peers and own:
            ratios.append(min(peers) / min(own))
    return median(ratios)


def least_ratio(rows, row):
    peers = [other["s"] for other in rows if other["T"] == row["T"] and not other["ours"]]
    return min(peers) / row["s"] if peers else None


def summarise(rounds, shape, dtype, best=0.0, mode="forward"):
    """The rows of the table and the reasons of those who have none, from a comparison's rounds.

    A row's time, "s", is the least over rounds; in decode the median.
    """
    kept = keep(rounds, dtype, best)
    limits = [each for kept_round in kept for each in kept_round["limits"]]
    roof = max((peak(each, dtype) for each in limits), default=None)
    bandwidth = max((each["gbs"] for each in limits), default=None)
    groups, reasons = {}, {}
    for line in (line for each in kept for line in each["lines"]):
        if "failed" in line:
            reasons[line["impl"]] = line["failed"]
        else:
            groups.setdefault((line["T"], line["impl"], line["ours"]), []).append(line)
    rows = []
    for (tokens, name, ours), lines in groups.items():
        best = min(lines, key=lambda line: line["min_s"])
        row = {
            "T": tokens,
            "impl": name,
            "ours": ours,
            "min_s": best["min_s"],
            "med_s": statistics.median(line["med_s"] for line in lines),
            "bytes": moved(best),
            "stages": best.get("stages"),
            "kept": best.get("kept_bytes_per_token"),
        }
        row["s"] = row["med_s"] if mode == "decode" else row["min_s"]
        flops = shape.flops(tokens, mode)
        row |= {"gflops": flops / row["s"] * 1e-9, "gbs": row["bytes"] / row["s"] * 1e-9}
        if roof:
            row["bound_share"] = max(flops / roof, row["bytes"] / bandwidth) * 1e-9 / row["s"]
        if mode == "decode":
            row["read_share"] = median([share for share in map(read_share, lines) if share is not None])
        rows.append(row)
    for row in rows:
        row["ratio"] = paired_ratio(kept, row) if mode == "decode" else least_ratio(rows, row)
    rows.sort(key=lambda row: (row["T"], row["s"]))
    return {
        "mode": mode,
        "rows": rows,
        "reasons": reasons,
        "peak": roof,
        "bandwidth": bandwidth,
        "others": max((each.get("others") or 0 for each in kept), default=0),
        "kept": len(kept),
        "rounds": len(rounds),
    }


def table(summary):
    """The table as text."""
    decode = summary["mode"] == "decode"
    share_title, share_name = ("of reading", "read_share") if decode else ("of the bound", "bound_share")
    head = ("T", "implementation", "min ms", "median ms", "GFLOP/s", "GB/s", share_title, "best peer / this")
    lines = ["{:>6}  {:34} {:>10} {:>10} {:>9} {:>7} {:>13}  {}".format(*head)]
    for row in summary["rows"]:
        share = f"{row[share_name]:.0%}" if row.get(share_name) else "-"
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        kept = f"  keeps {row['kept'] * 1e-3:.1f} kB a token" if row["kept"] else ""
        lines.append(
            f"{row['T']:6}  {row['impl']:34} {row['min_s'] * 1e3:10.3f} {row['med_s'] * 1e3:10.3f} "
            f"{row['gflops']:9.1f} {row['gbs']:7.1f} {share:>13}  {ratio}{kept}"
        )
    if summary["peak"]:
        lines.append(f"limits: {summary['peak']:.0f} GFLOP/s, {summary['bandwidth']:.1f} GB/s")
    else:
        lines.append("limits: bench_limits is not built, so shares of the bound are unknown")
    share = f"{summary['others']:.0%}"
    lines.append(f"rounds: {summary['kept']} of {summary['rounds']} kept; others had up to {share} of the processors")
    lines += [f"left out: {name}: {reason}" for name, reason in summary["reasons"].items()]
    return "\n".join(lines)


def say(text):
    print(f"\r{text:60}", end="", file=sys.stderr, flush=True)


def arguments():
    own = sys.argv[1:]
    template = []
    if "--" in own:
        template = own[own.index("--") + 1 :]
        own = own[: own.index("--")]
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s SHAPE DTYPE T[,T...] [options] [-- COMMAND...]",
    )
    parser.add_argument("shape", metavar="SHAPE", help=shapes.SYNTAX)
    parser.add_argument("dtype", metavar="DTYPE", choices=shapes.BYTES, help=" or ".join(shapes.BYTES))
    parser.add_argument("tokens", metavar="T[,T...]", help="numbers of tokens")
    parser.add_argument("--mode", choices=shapes.MODES, default="forward", help="decode: few tokens, cold caches")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7, help="timed passes of a peer in a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--skew", type=float, default=0, help="exponent of the experts' popularity: 1 is Zipf's law")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead of a table")
    options = parser.parse_args(own)
    try:
        options.shape = shapes.parse(options.shape)
        options.tokens = [int(tokens) for tokens in options.tokens.split(",")]
        our_command(template, options.shape, options.dtype, options.tokens, options.skew, options.mode)
    except KeyError as unknown:
        parser.error(f"the command has the unknown placeholder {unknown}")
    except (ValueError, IndexError) as error:
        parser.error(str(error))
    return options, template


def main():
    options, template = arguments()
    catalogue.end_children_when_ended()
    rounds = []
    try:
        for number in range(options.rounds):
            rounds.append(
                measure_round(
                    options.shape,
                    options.dtype,
                    options.tokens,
                    template,
                    options.threads,
                    options.skew,
                    options.repeats,
                    lambda what: say(f"round {number + 1} of {options.rounds}: {what}"),
                    options.mode,
                )
            )
    except KeyboardInterrupt:
        if not rounds:
            sys.exit("\ninterrupted before the end of the first round")
    say("")
    summary = summarise(rounds, options.shape, options.dtype, mode=options.mode)
    print("\r" + (json.dumps(summary) if options.json else table(summary)))


if __name__ == "__main__":
    main()
