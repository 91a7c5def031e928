#!/usr/bin/env python3
"""Measures everything that docs/performance.md tells, and writes its tables and pictures.

Prose in the page is written by hand; only what lies between its markers is replaced. Raw measurements are kept in
build/performance.json, so that an interrupted run goes on with --resume; --rounds 0 --resume only writes the page anew.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import subprocess
import sys
import time

import cases as measured
import compare
import machine
import markdown
from peers import catalogue
from store import Store

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYER = ROOT / "build" / "bench" / "bin" / "bench_layer"
PAGE = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "images"


def our_command(case):
    """bench_layer's arguments for a case, with the placeholders of compare.py."""
    shape = case.shape
    arguments = [str(LAYER), "--json", "--dtype", "{dtype}", "--tokens", "{tokens}", "--skew", "{skew}"]
    arguments += ["--mode", "{mode}"]
    if shape.name in compare.shapes.NAMED:
        return [*arguments, "--shape", "{shape}"]
    for name in ("hidden", "intermediate", "experts", "top_k", "shared"):
        arguments += [f"--{name.replace('_', '-')}", f"{{{name}}}"]
    return arguments


def duration(seconds):
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def best_probes(cases, store):
    """The best probe of the whole run by dtype, which every round is held against."""
    best = {}
    for case in cases:
        for one in store.rounds(case.name):
            best[case.dtype] = max(best.get(case.dtype, 0.0), compare.probe(one, case.dtype))
    return best


def measure(cases, every, store, options):
    """Round by round over all cases, so that what is there after an interruption covers all alike.

    Rounds that were disturbed do not count: another run with --resume measures them again.
    """
    best = best_probes(every, store)
    kept = {case: len(compare.keep(store.rounds(case.name), case.dtype, best.get(case.dtype, 0.0))) for case in cases}
    todo = [(case, number) for number in range(options.rounds) for case in cases if kept[case] <= number]
    start = time.monotonic()
    for done, (case, number) in enumerate(todo):
        left = duration((time.monotonic() - start) / done * (len(todo) - done)) if done else "unknown"
        place = f"{done + 1}/{len(todo)}, {left} left: {case.name}, round {number + 1}"
        command = [*our_command(case), "--repeats", str(options.repeats)]
        found = compare.measure_round(
            case.shape,
            case.dtype,
            case.tokens,
            command,
            options.threads,
            case.skew,
            options.repeats,
            lambda what: compare.say(f"{place}, {what}"),
            case.mode,
        )
        store.add(case.name, found)
    compare.say("")
    print(file=sys.stderr)


def summaries(cases, store):
    """A summary for each case that has been measured."""
    best = best_probes(cases, store)
    return {
        case.name: compare.summarise(store.rounds(case.name), case.shape, case.dtype, best[case.dtype], case.mode)
        for case in cases
        if store.rounds(case.name)
    }


def links(page, folder):
    """The pictures that there are, each as a link by the name of its section."""
    titles = {
        "layers": ("roofline", "Rates of layers under the machine's limits"),
        "grain": ("growth", "Rates as experts become more and finer"),
        "stages": ("shares", "Time of the stages of a forward pass"),
    }
    found = {}
    for section, (name, title) in titles.items():
        path = folder / f"performance_{name}.svg"
        if path.exists():
            found[section] = f"![{title}]({os.path.relpath(path, page.parent)})"
    return found


def write_page(cases, found, store, path, pictures):
    """Replaces the generated parts of the page; sections without measurements stay as they are."""
    groups = {}
    for case in cases:
        if case.name in found:
            groups.setdefault(case.group, []).append(case)
    limits = [each for rounds in store.data["rounds"].values() for one in rounds for each in one["limits"]]
    date = time.strftime("%Y-%m-%d")
    blocks = {"machine": markdown.machine(store.data["machine"], date, limits), "left out": markdown.left_out(found)}
    if "layers" in groups:
        blocks["layers"] = markdown.layers(groups["layers"], found)
        blocks["everyone"] = markdown.everyone(groups["layers"], found)
        blocks["stages"] = markdown.stages(groups["layers"], found)
    if "decode" in groups:
        blocks["decode"] = markdown.decode(groups["decode"], found)
    if "int8" in groups:
        blocks["int8"] = markdown.int8(groups["int8"], found)
    if "training" in groups:
        blocks["training"] = markdown.training(groups["training"], found)
    if "growth" in groups:
        values = lambda case: (str(case.shape.experts),)
        blocks["growth"] = markdown.series(groups["growth"], found, ("experts",), values)
    if "grain" in groups:
        values = lambda case: (f"{case.shape.experts} / {case.shape.top_k} / {case.shape.intermediate}",)
        blocks["grain"] = markdown.series(groups["grain"], found, ("experts / a token / width",), values)
    if "skew" in groups:
        values = lambda case: (f"{case.skew:g}",)
        blocks["skew"] = markdown.series(groups["skew"], found, ("exponent",), values)
    for name, title in pictures.items():
        if name in blocks:
            blocks[name] += f"\n\n{title}"
    text = path.read_text() if path.exists() else "# Performance on hosts\n"
    for name, content in blocks.items():
        text = markdown.replace_block(text, name, content)
    path.write_text(text)


def draw(cases, found, summary_path, folder):
    """By the peers' Python, which has matplotlib."""
    entries = [
        {
            "group": case.group,
            "shape": case.shape.name,
            "dtype": case.dtype,
            "experts": case.shape.experts,
            "top_k": case.shape.top_k,
            "summary": found[case.name],
        }
        for case in cases
        if case.name in found
    ]
    summary_path.write_text(json.dumps(entries))
    python = catalogue.python()
    if python is None or subprocess.run([str(python), "-c", "import matplotlib"], capture_output=True).returncode:
        print("matplotlib is not installed, so pictures stay as they are; bench/peers/setup.sh installs it.")
        return
    subprocess.run([str(python), str(ROOT / "bench" / "pictures.py"), str(summary_path), str(folder)], check=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", action="store_true", help="go on with the measurements that are there")
    parser.add_argument("--quick", action="store_true", help="one round of three passes instead of three of seven")
    parser.add_argument("--rounds", type=int, help="of each case")
    parser.add_argument("--repeats", type=int, help="timed passes in a round")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="cases by name, as in 'layers/*/f32'")
    parser.add_argument("--list", action="store_true", help="print the cases' names and measure nothing")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "build" / "performance.json")
    parser.add_argument("--page", type=pathlib.Path, default=PAGE)
    parser.add_argument("--pictures", type=pathlib.Path, default=PICTURES)
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = 1 if options.quick else 3
    if options.repeats is None:
        options.repeats = 3 if options.quick else 7
    return options


def main():
    options = arguments()
    every = measured.all_cases()
    chosen = [case for case in every if fnmatch.fnmatch(case.name, options.only)]
    if options.list or not chosen:
        print("\n".join(case.name for case in every))
        return 0 if chosen else "no case has such a name"
    if not LAYER.exists() or not compare.LIMITS.exists():
        return "bench_layer and bench_limits are missing; build them with: cmake --workflow --preset bench"
    absent = [peer.name for peer in catalogue.PEERS if catalogue.missing(peer)]
    if absent:
        print(f"Not installed, so left out: {', '.join(absent)}; bench/peers/setup.sh installs them.", file=sys.stderr)
    description = machine.describe(ROOT, compare.measure_limits(options.threads), options.threads)
    store = Store(options.data, options.resume, description)
    catalogue.end_children_when_ended()
    try:
        measure(chosen, every, store, options)
    except KeyboardInterrupt:
        print(f"\nInterrupted; --resume goes on from {options.data}.", file=sys.stderr)
        return 130
    found = summaries(every, store)
    draw(every, found, options.data.with_suffix(".summary.json"), options.pictures)
    write_page(every, found, store, options.page, links(options.page, options.pictures))
    print(f"{options.page} and {options.pictures} are written.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
