"""What the report says about the machine and the software that was measured."""

import pathlib
import platform
import re
import subprocess

from peers import catalogue

FEATURES = {  # as the kernel calls them, in the order of the table
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512F",
    "avx512_bf16": "AVX512-BF16",
    "avx512_vnni": "AVX512-VNNI",
    "amx_bf16": "AMX-BF16",
}


def first_match(pattern, text, default="unknown"):
    found = re.search(pattern, text, re.MULTILINE)
    return found.group(1).strip() if found else default


def processor():
    """The model and the instruction sets that matter here."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), "unknown"
    name = first_match(r"^model name\s*:\s*(.+)$", text)
    family = first_match(r"^cpu family\s*:\s*(\d+)$", text)
    model = first_match(r"^model\s*:\s*(\d+)$", text)
    flags = catalogue.processor_flags()
    sets = [title for flag, title in FEATURES.items() if flag in flags]
    return f"{name} (family {family}, model {model})", ", ".join(sets) or "none of the wider ones"


def revision(root):
    """The commit that was measured, and whether files differ from it."""
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def describe(root, limits, threads):
    """Everything that a reader needs to place the numbers; `limits` as bench_limits prints them, or None."""
    name, sets = processor()
    return {
        "processor": name,
        "instruction sets": sets,
        "threads": threads,
        "compiler": limits["compiler"] if limits else "unknown",
        "compiled for": limits["instructions"] if limits else "unknown",
        "pages": "2 MiB" if limits and limits["huge_pages"] else "of the system's size",
        "system": f"{platform.system()} {platform.release()}",
        "moe": revision(root),
        "peers": catalogue.versions(),
    }
