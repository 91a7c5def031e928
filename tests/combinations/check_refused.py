#!/usr/bin/env python3
"""Compiles the refused pairs of policies and looks for each one's sentence.

    check_refused.py COMPILER FLAGS_FILE FOLDER

FOLDER holds forbidden.cpp and forbidden.json, as generate.py writes them.
"""
import json
import pathlib
import re
import subprocess
import sys


def sentences(output):
    """Line of forbidden.cpp -> what the compiler says about it. GCC names the line before its errors, clang behind."""
    found, line, pending = {}, None, []
    for text in output.splitlines():
        place = re.search(r"forbidden\.cpp:(\d+):\d+:", text)
        if place:
            line = place.group(1)
            found.setdefault(line, []).extend(pending)
            pending = []
        if "error:" in text and "static" in text:
            before = place is None and "-clang" not in sys.argv[1] and line is not None
            (found[line] if before else pending).append(text)
    return found


def main():
    compiler, flags, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    wanted = json.loads((folder / "forbidden.json").read_text())
    run = subprocess.run([compiler, f"@{flags}", "-fmax-errors=0" if "clang" not in compiler else "-ferror-limit=0",
                          str(folder / "forbidden.cpp")], capture_output=True, text=True, check=False)
    if run.returncode == 0:
        sys.exit("forbidden.cpp compiles, and should not")
    found = sentences(run.stderr)
    missing = []
    for line, entry in wanted.items():
        said = [text for text in found.get(line, []) if entry["says"] in text]
        print(f"{entry['router']}: {said[0].split('error: ')[-1] if said else 'NOT REFUSED'}")
        if not said:
            missing.append(entry["router"])
    if missing:
        sys.exit(f"{len(missing)} of {len(wanted)} pairs do not get their sentence; the compiler says:\n{run.stderr[-3000:]}")
    print(f"{len(wanted)} pairs refused, each with its sentence")


if __name__ == "__main__":
    main()
