#!/usr/bin/env python3
"""Trains the models of examples/train_text by ours and by PyTorch in turn, and prints tokens a second of both.

Both draw batches of the same size from the same texts, on the same threads. Ours also writes its checkpoints meanwhile;
validation counts on neither side. The last line has the median over rounds of the ratios within a round.

  cmake --build --preset demo --target train_text && bench/train_text.py
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import others
from peers import catalogue

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEER = ROOT / "bench" / "peers" / "train_text.py"


def run(command, settings):
    """The JSON that a program prints last."""
    done = subprocess.run(list(map(str, command)), env=settings, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        sys.exit(f"{command[0]} failed: {said[-1] if said else done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def environment(options):
    """As the demo runs: waiting threads spin a little before they sleep, since steps are short."""
    settings = catalogue.environment(options.threads) | {"OMP_PROC_BIND": "false", "GOMP_SPINCOUNT": "20000"}
    del settings["OMP_WAIT_POLICY"]
    return settings


def ours(options, model):
    settings = environment(options)
    with tempfile.TemporaryDirectory() as folder:
        command = [options.ours, "--json", "--out", folder, "--model", model, "--steps", options.steps]
        command += ["--seed", options.seed]
        for text in options.text:
            command += ["--text", text]
        return run(command, settings)


def theirs(options, model):
    settings = environment(options) | {"GLIBC_TUNABLES": catalogue.MALLOC}
    command = [catalogue.python(), PEER, "--model", model, "--steps", options.steps, "--seed", options.seed]
    return run([*command, "--threads", options.threads, "--text", *options.text], settings)


def bits(report):
    """The training loss of the last step."""
    return report["curve"][-1]["bits_per_byte"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    program = ROOT / "build" / "demo" / "bin" / "train_text"
    parser.add_argument("--ours", type=pathlib.Path, default=program, help="the program train_text")
    parser.add_argument("--models", default="mixtral,deepseek-v3,dense")
    parser.add_argument("--text", nargs="+", type=pathlib.Path, help="files to train on (default: the program's own)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true", help="a line a round instead of a table")
    options = parser.parse_args()
    options.text = options.text or sorted((options.ours.parent.parent / "text").glob("*.txt"))
    if not options.ours.exists() or not options.text:
        parser.error(f"{options.ours} or its texts are missing; build them with: cmake --workflow --preset demo")
    if catalogue.python() is None:
        parser.error("PyTorch is not installed; bench/peers/setup.sh installs it")
    return options


def main():
    options = arguments()
    catalogue.end_children_when_ended()
    ratios = {}
    watch = others.Watch()
    if not options.json:
        print(f"{'model':12} {'ours, tokens/s':>15} {'theirs':>9} {'ratio':>6}  bits per byte in the last step")
    for _ in range(options.rounds):
        for model in options.models.split(","):
            mine, other = ours(options, model), theirs(options, model)
            rates = mine["tokens_per_second"], other["tokens_per_second"]
            ratios.setdefault(model, []).append(rates[0] / rates[1])
            if options.json:
                line = {"model": model, "ours": rates[0], "theirs": rates[1], "impl": other["impl"]}
                print(json.dumps(line | {"bits": [bits(mine), other["bits_per_byte"]]}), flush=True)
            else:
                print(
                    f"{model:12} {rates[0]:15.0f} {rates[1]:9.0f} {ratios[model][-1]:6.2f}  "
                    f"{bits(mine):.2f} and {other['bits_per_byte']:.2f}, {other['impl']}",
                    flush=True,
                )
    if not options.json:
        medians = ", ".join(f"{model} {statistics.median(found):.2f}" for model, found in ratios.items())
        print(f"median ratio: {medians}; others had {watch.share() or 0:.0%} of the processors")


if __name__ == "__main__":
    main()
