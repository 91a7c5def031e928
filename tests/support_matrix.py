#!/usr/bin/env python3
"""Writes docs/devices.md's table of what is tested where: runs the unit tests that can run here, plainly and on the
devices' code paths, and looks which of them the builds for GPUs have compiled.

    cmake --workflow --preset test
    cmake --workflow --preset cuda-full; cmake --workflow --preset hip-full
    python3 tests/support_matrix.py
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as xml

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import markdown  # noqa: E402  (bench/markdown.py)

DTYPES = {"float": "f32", "double": "f64", "moe::bfloat16": "bf16", "bfloat16": "bf16", "moe::float16": "f16"}
ORDER = ("f64", "f32", "bf16", "f16", "int8", "fp8")
SPECIAL = {"packed_int8": "int8", "fp8": "fp8"}


def subject(source):
    """The first line of a test's file says what it is about."""
    text = re.sub(r"\n// ?", " ", source.read_text().partition("\n#include")[0]).removeprefix("// ")
    return re.split(r"[.:] ", text.strip())[0].rstrip(".")


def run(program, name):
    """(passed, all, types) of a file's test cases, or None where the program has none of them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_PROC_BIND": "false", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([program, "-#", f"[#{name}]", "-r", "xml"], capture_output=True, text=True, env=environment)
    begin = done.stdout.find("<?xml")
    cases = list(xml.fromstring(done.stdout[begin:]).iter("TestCase")) if begin >= 0 else []
    if not cases:
        return None
    types = set()
    for case in cases:
        parts = case.get("name").split(" - ")
        types |= {"f32", "f64"} if "Cases" in parts else {DTYPES[parts[-1]]} if parts[-1] in DTYPES else set()
    types |= {SPECIAL[name]} if name in SPECIAL else set()
    return sum(case.find("OverallResult").get("success") == "true" for case in cases), len(cases), types


def compiled(build, name):
    found = sorted(build.glob(f"tests/CMakeFiles/moe_tests.dir/unit/{name}.cpp.o"))
    return "compiles" if found else "–"


def cell(result):
    if result is None:
        return "–"
    passed, count, _ = result
    return f"{count} pass" if passed == count else f"**{count - passed} of {count} fail**"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=pathlib.Path, default=ROOT / "build/test", help="build of the preset test")
    parser.add_argument("--cuda", type=pathlib.Path, default=ROOT / "build/cuda-full", help="build for CUDA")
    parser.add_argument("--hip", type=pathlib.Path, default=ROOT / "build/hip-full", help="build for HIP")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs/devices.md", help="page to write into")
    options = parser.parse_args()
    programs = [options.host / "bin" / name for name in ("moe_tests", "moe_device_path_tests")]
    for program in programs:
        if not program.exists():
            sys.exit(f"{program} is missing; build it with: cmake --workflow --preset test")

    rows = []
    sources = sorted((ROOT / "tests/unit").glob("*.cpp"))
    for number, source in enumerate(sources):
        print(f"\r{number + 1}/{len(sources)} {source.stem:30}", end="", file=sys.stderr, flush=True)
        name = source.stem
        results = [run(program, name) for program in programs]
        types = set().union(*(result[2] for result in results if result))
        rows.append([f"`{name}`", subject(source), ", ".join(t for t in ORDER if t in types), *map(cell, results),
                     compiled(options.cuda, name), compiled(options.hip, name)])
    print(file=sys.stderr)
    head = ["tests", "of", "types", "hosts", "devices' paths on hosts", "CUDA", "HIP"]
    page = options.page.read_text()
    options.page.write_text(markdown.replace_block(page, "support", markdown.table(head, rows)))


if __name__ == "__main__":
    main()
