#!/usr/bin/env python3
"""Measures layers of published sizes on this machine's GPU beside the GPU's limits and peers, and writes
docs/devices.md's tables.

Everything is in bf16: forward passes, forward and backward (train), and few tokens with weights from memory (decode).
The peak of products and the bandwidth of copies are measured in the same run. Peers run where the given Python has
torch; without it the table has none. Measurements go to a JSON file one by one, so that an interrupted run goes on
where it stopped; --again measures anew.

  bench/device.py                 builds the programs for CUDA, measures all, writes the page
  bench/device.py --dry-run       prints what it would run
  bench/device.py --only '*/decode' --no-build
"""

import argparse
import fnmatch
import json
import pathlib
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass

import device_table
import machine
from peers import catalogue, shapes

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "build" / "bench-cuda" / "bin"
PEER = ROOT / "bench" / "peers" / "device_layers.py"
SECONDS = 1800  # most for one program
TOKENS = {
    "decode": (1, 2, 4, 8),
    "forward": (16, 64, 512, 2048, 8192, 32768),
    "train": (64, 512, 2048, 8192, 32768),
}


@dataclass(frozen=True)
class Case:
    name: str
    shape: shapes.Shape
    mode: str
    tokens: tuple


def all_cases():
    return [
        Case(f"{name}/{mode}", shape, mode, tokens)
        for name, shape in shapes.WHOLE.items()
        for mode, tokens in TOKENS.items()
    ]


def gpu():
    """Name and compute capability of the first GPU, or None."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        return None
    name, capability, driver = (part.strip() for part in done.stdout.splitlines()[0].split(","))
    architecture = capability.replace(".", "")
    return {"device": name, "architecture": {"90": "90a"}.get(architecture, architecture), "driver": driver}


def build_commands(architecture):
    return [
        ["cmake", "--preset", "bench-cuda", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"],
        ["cmake", "--build", "--preset", "bench-cuda"],
    ]


def commands(case, tokens, options):
    """Ours and the peers', by name."""
    common = ["--shape", case.shape.name, "--mode", case.mode, "--tokens", ",".join(map(str, tokens))]
    common += ["--repeats", str(options.repeats), "--dtype", "bf16"]
    found = {"moe": [str(options.programs / "bench_layer"), "--json", *common]}
    if options.python:
        found["torch"] = [str(options.python), str(PEER), *common]
    return found


class Store:
    """The JSON file, written anew after each program."""

    def __init__(self, path, description, again):
        self.path, self.data = path, {"machine": description, "limits": {}, "rows": {}}
        if path.exists() and not again:
            found = json.loads(path.read_text())
            if description is None or found["machine"].get("device") == description.get("device"):
                self.data = found
                self.data["machine"] = description or found["machine"]

    def missing(self, case, program):
        """Tokens of a case that a program has neither measured nor failed at."""
        rows = [row for row in self.data["rows"].get(case.name, []) if row.get("program") == program]
        return [tokens for tokens in case.tokens if not any(row.get("T") == tokens for row in rows)]

    def add(self, case, program, rows):
        kept = self.data["rows"].setdefault(case.name, [])
        for row in rows:
            if row["impl"] == "limits":
                self.add_limits(row)
            else:
                kept.append(row | {"program": program})
        self.write()

    def add_limits(self, found):
        for name in ("bf16_tflops", "copy_gbs"):
            if found.get(name):
                self.data["limits"][name] = max(found[name], self.data["limits"].get(name, 0.0))

    def write(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=1))
        part.replace(self.path)


def measure_limits(options, store):
    done = subprocess.run([str(options.programs / "bench_device_limits")], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"bench_device_limits failed: {done.stderr.strip().splitlines()[-1:]}")
    store.add_limits(json.loads(done.stdout.splitlines()[-1]))
    store.write()


def plan(cases, options, store):
    return [
        (case, program, store.missing(case, program))
        for case in cases
        for program in commands(case, case.tokens, options)
        if store.missing(case, program)
    ]


def measure_case(case, program, tokens, options, store):
    """One program at its numbers of tokens; where it ends at one of them, it starts again behind that one."""
    while tokens:
        rows = catalogue.run(commands(case, tokens, options)[program], None, SECONDS, program)
        reached = {row["T"] for row in rows if "T" in row}
        if not reached:
            reason = next((row["failed"] for row in rows if "failed" in row), "printed nothing")
            rows = [row for row in rows if "failed" not in row]
            rows.append({"impl": program, "T": tokens[0], "failed": reason})
            reached = {tokens[0]}
        store.add(case, program, rows)
        tokens = [count for count in tokens if count not in reached]


def measure(todo, options, store):
    start = time.monotonic()
    measure_limits(options, store)
    for done, (case, program, tokens) in enumerate(todo):
        left = f"{(time.monotonic() - start) / done * (len(todo) - done) / 60:.0f} min left" if done else ""
        print(f"{done + 1}/{len(todo)} {case.name}: {program} {left}", file=sys.stderr, flush=True)
        measure_case(case, program, tokens, options, store)
    measure_limits(options, store)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, default=ROOT / "build" / "devices.json",
                        help="measurements, taken up where they are")
    parser.add_argument("--out", metavar="PAGE", type=pathlib.Path, default=ROOT / "docs" / "devices.md",
                        help="whose parts between markers are written")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="cases by name, as in 'mixtral-8x7b/*'")
    parser.add_argument("--repeats", type=int, default=7, help="timed passes, of which the median counts")
    parser.add_argument("--python", type=pathlib.Path, default=catalogue.python() or pathlib.Path(sys.executable),
                        help="that has torch, for the peers")
    parser.add_argument("--no-peers", action="store_true", help="measure ours alone")
    parser.add_argument("--no-build", action="store_true", help="take the programs as they are")
    parser.add_argument("--programs", type=pathlib.Path, default=PROGRAMS, help="where bench_layer lies")
    parser.add_argument("--again", action="store_true", help="forget what the JSON file holds")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    parser.add_argument("--write-only", action="store_true", help="write the page from the JSON file, measure nothing")
    options = parser.parse_args()
    if options.no_peers:
        options.python = None
    return options


def dry_run(cases, options, store):
    for command in build_commands("of the GPU"):
        print(" ".join(command))
    print(options.programs / "bench_device_limits")
    for case, program, tokens in plan(cases, options, store):
        print(" ".join(commands(case, tokens, options)[program]))


def main():
    options = arguments()
    every = all_cases()
    cases = [case for case in every if fnmatch.fnmatch(case.name, options.only)]
    if not cases:
        return f"No case has such a name; there are {', '.join(case.name for case in every)}."
    if options.write_only:
        if not options.json.exists():
            return f"{options.json} does not exist: measure first."
        device_table.write(options.out, every, Store(options.json, None, False).data)
        print(f"{options.out} is written.")
        return 0
    if options.dry_run:
        dry_run(cases, options, Store(options.json, None, options.again))
        return 0
    found = gpu()
    if found is None:
        return "There is no GPU here (nvidia-smi lists none): run this on a machine with one, or see --dry-run."
    if not options.no_build:
        for command in build_commands(found["architecture"]):
            if subprocess.run(command, cwd=ROOT).returncode:
                return f"The build failed: {' '.join(command)}"
    if not (options.programs / "bench_layer").exists():
        return f"{options.programs} has no bench_layer: leave --no-build out."
    description = found | {"moe": machine.revision(ROOT), "measured on": time.strftime("%Y-%m-%d")}
    store = Store(options.json, description, options.again)
    if options.python and subprocess.run([str(options.python), "-c", "import torch"], capture_output=True).returncode:
        print(f"{options.python} has no torch, so there are no peers; --python names another.", file=sys.stderr)
        options.python = None
    catalogue.end_children_when_ended()
    try:
        measure(plan(cases, options, store), options, store)
    except KeyboardInterrupt:
        print(f"\nInterrupted; the same command goes on from {options.json}.", file=sys.stderr)
        return 130
    except RuntimeError as error:
        return str(error)
    device_table.write(options.out, every, store.data)
    print(f"{options.json} and {options.out} are written.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
