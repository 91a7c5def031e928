#!/usr/bin/env python3
"""What the kernels of built programs take of a GPU: registers, shared memory, spills, and the occupancy that leaves.

A PROGRAM holds CUDA code (read by cuobjdump) or HIP code (read by llvm-readelf), or it is a text file with what
`nvcc --resource-usage` printed, for a machine without cuobjdump. No GPU is needed. Products of matrices count with the
threads and the scratch memory of their teams, for 256 experts. What other kernels ask for at the launch alone is not
known here: they may run with less occupancy than this tells.

    cmake --preset bench-cuda -DCMAKE_CUDA_ARCHITECTURES='80;90a;100' && cmake --build --preset bench-cuda
    cmake --preset bench-hip -DMOE_HIP_ARCHITECTURES='gfx90a;gfx942' && cmake --build --preset bench-hip
    bench/device_resources.py build/bench-{cuda,hip}/bin/bench_layer --page docs/devices.md
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile

import device_kernels
import markdown

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A multiprocessor of Nvidia, from the table "Technical Specifications per Compute Capability" of the CUDA C++ Programming
# Guide, and the sizes of allocations from the occupancy calculator of Nsight Compute: each of 4 parts has 16 K registers,
# given to warps in 256s; from 8.0 on the runtime takes 1 KB of each block's shared memory, which cuobjdump counts in from
# 9.0 on.
RESERVED = 1024
NVIDIA = {
    "sm_80": {"waves": 64, "blocks": 32, "memory": 164 * 1024},
    "sm_90": {"waves": 64, "blocks": 32, "memory": 228 * 1024},
    "sm_90a": {"waves": 64, "blocks": 32, "memory": 228 * 1024},
    "sm_100": {"waves": 64, "blocks": 32, "memory": 228 * 1024},
}
# A compute unit of AMD has 4 SIMDs. From the "AMD Instinct MI200" and "MI300" (CDNA2, CDNA3) instruction set guides and
# LLVM's AMDGPUBaseInfo.cpp: 512 vector registers a lane of a SIMD, normal and accumulation ones together, given in 8s; at
# most 8 waves a SIMD, 7 beyond 100 scalar registers; 64 KB of LDS, given in 512s. LLVM's .vgpr_count is of both kinds.
AMD = {
    "gfx90a": {"waves": 32, "blocks": 32, "memory": 64 * 1024},
    "gfx942": {"waves": 32, "blocks": 32, "memory": 64 * 1024},
}


def up(value, step):
    return -(-value // step) * step


def occupancy(kernel, threads):
    """The part of a multiprocessor's waves (warps) that blocks can fill, or None where it is unknown. They have so many
    threads, where the kernel does not say otherwise."""
    name = kernel["architecture"]
    threads = kernel["threads"] or min(threads, kernel["max_threads"] or threads)
    shared = kernel["shared"] + kernel["scratch"]
    if name in NVIDIA:
        limits, width = NVIDIA[name], 32
        by_registers = 4 * (16384 // up(max(kernel["registers"], 1) * 32, 256))
        memory = up(shared + RESERVED, 128)
    elif name in AMD:
        limits, width = AMD[name], 64
        a_simd = min(8 if kernel["scalar_registers"] <= 100 else 7, 512 // up(max(kernel["registers"], 1), 8))
        by_registers = 4 * a_simd
        memory = up(shared, 512)
    else:
        return None
    waves = -(-threads // width)
    blocks = min(limits["blocks"], limits["waves"] // waves, by_registers // waves)
    if memory:
        blocks = min(blocks, limits["memory"] // memory)
    return blocks * waves / limits["waves"]


def find_tool(name, option):
    """The tool given, in the PATH with or without a version, or among the fetched dependencies."""
    if option:
        return option
    if found := shutil.which(name):
        return found
    folders = [pathlib.Path(f) for f in os.environ.get("PATH", "").split(":") if f]
    folders += sorted(ROOT.glob(".deps/debian/usr/lib/llvm-*/bin"), reverse=True)
    folders += [pathlib.Path("/opt/rocm/llvm/bin"), pathlib.Path("/usr/local/cuda/bin")]
    folders += ROOT.glob(".deps/cuobjdump/nvidia/*/bin")
    for folder in folders:
        for file in [folder / name, *sorted(folder.glob(f"{name}-[0-9]*"), reverse=True)]:
            if file.is_file() and os.access(file, os.X_OK):
                return str(file)
    return None


def output_of(command, text=None):
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def kernel(architecture, symbol, registers, shared, **other):
    values = {"scalar_registers": 0, "stack": 0, "spilled": None, "max_threads": None, **other}
    return {"architecture": architecture, "symbol": symbol, "registers": registers, "shared": shared, **values}


def from_cuobjdump(text):
    """cuobjdump tells the stack of a thread, in which spilled registers lie, but not their number."""
    kernels, architecture, symbol = [], None, None
    for line in text.splitlines():
        if found := re.match(r"arch = (\w+)", line):
            architecture = found[1]
        elif found := re.match(r" Function (\S+):$", line):
            symbol = found[1]
        elif found := re.match(r"  REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            registers, stack, shared = map(int, found.groups())
            shared -= RESERVED if int(re.search(r"\d+", architecture)[0]) >= 90 else 0
            kernels.append(kernel(architecture, symbol, registers, shared, stack=stack))
    return kernels


def from_ptxas(text):
    kernels, place, frame = [], None, (0, 0)
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            place = found
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            frame = tuple(map(int, found.groups()))
        elif place and (found := re.search(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?", line)):
            stack, spilled = frame
            kernels.append(kernel(place[2], place[1], int(found[1]), int(found[2] or 0), stack=stack, spilled=spilled // 4))
            place = None
    return kernels


def code_objects(data):
    """(target, bytes) of each bundle of each translation unit, as clang-offload-bundler lays them out."""
    magic = b"__CLANG_OFFLOAD_BUNDLE__"
    start = data.find(magic)
    while start >= 0:
        at = start + len(magic)
        (count,) = struct.unpack_from("<Q", data, at)
        at += 8
        for _ in range(count if count < 64 else 0):  # more are none, but the same words elsewhere
            offset, size, length = struct.unpack_from("<QQQ", data, at)
            target = data[at + 24 : at + 24 + length].decode(errors="replace")
            at += 24 + length
            if target.startswith("hip") and size:
                yield target, data[start + offset : start + offset + size]
        start = data.find(magic, at)


def from_notes(text, architecture):
    kernels, fields = [], None
    for line in text.splitlines():
        if line.startswith("amdhsa.") and not line.startswith("amdhsa.kernels"):
            break
        if found := re.match(r"  (-| ) \.(\w+): *(.*)", line):
            if found[1] == "-":
                fields = {}
                kernels.append(fields)
            fields[found[2]] = found[3].strip("'\"")
    return [
        kernel(
            architecture,
            f["name"],
            int(f["vgpr_count"]),
            int(f["group_segment_fixed_size"]),
            scalar_registers=int(f["sgpr_count"]),
            stack=int(f["private_segment_fixed_size"]),
            spilled=int(f["vgpr_spill_count"]),
            max_threads=int(f["max_flat_workgroup_size"]),
        )
        for f in kernels
    ]


def read(program, options):
    data = program.read_bytes()
    if not data.startswith(b"\x7fELF"):
        return from_ptxas(data.decode(errors="replace"))
    kernels = []
    with tempfile.TemporaryDirectory() as folder:
        for target, code in code_objects(data):
            readelf = find_tool("llvm-readelf", options.readelf)
            if not readelf:
                sys.exit("llvm-readelf is missing, which reads HIP's code; install it with: sudo apt-get install llvm")
            file = pathlib.Path(folder) / "code"
            file.write_bytes(code)
            architecture = re.sub(r".*-", "", target).split(":")[0]
            kernels += from_notes(output_of([readelf, "--notes", str(file)]), architecture)
    if b".nv_fatbin" in data:
        cuobjdump = find_tool("cuobjdump", options.cuobjdump)
        if not cuobjdump:
            sys.exit("cuobjdump is missing; it comes with the CUDA toolkit, and from PyPI: pip install nvidia-cuda-cuobjdump")
        kernels += from_cuobjdump(output_of([cuobjdump, "--dump-resource-usage", str(program)]))
    return kernels


def short(name):
    """moe::v0_1::detail::CountChunk<float, ...> out of Kokkos' launcher, without namespaces."""
    if found := re.search(r"Kokkos::Impl::Parallel(For|Reduce|Scan)\w*<", name):
        depth, begin = 0, found.end()
        for at in range(begin, len(name)):
            if name[at] in "<(":
                depth += 1
            elif name[at] in ">)":
                depth -= 1
            if depth < 0 or (depth == 0 and name[at] == ","):
                name = name[begin:at]
                break
    return re.sub(r"\b(?:\w+::)+|\(anonymous namespace\)::", "", name).replace("> >", ">>")


def demangle(kernels):
    tool = find_tool("c++filt", None) or find_tool("llvm-cxxfilt", None)
    symbols = [k["symbol"] for k in kernels]
    names = output_of([tool], "\n".join(symbols) + "\n").splitlines() if tool else symbols
    for one, name in zip(kernels, names):
        one["name"] = short(name)
        one["of_moe"] = "moe::" in name or "3moe" in name
        one["threads"], one["scratch"] = device_kernels.team_of(one["name"]) or (None, 0)


def table(kernels, width):
    head = ["kernel", "registers", "scalar", "shared", "scratch", "stack", "spilled", "occupancy"]
    rows = []
    for k in kernels:
        name = k["name"] if len(k["name"]) <= width else k["name"][: width - 3] + "..."
        spilled = "?" if k["spilled"] is None else str(k["spilled"])
        part = "?" if k["occupancy"] is None else f"{100 * k['occupancy']:.0f} %"
        numbers = [str(k[n]) for n in ("registers", "scalar_registers", "shared", "scratch", "stack")]
        rows.append([name, *numbers, spilled, part])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", metavar="PROGRAM", type=pathlib.Path, nargs="+")
    parser.add_argument("--architecture", help="only this one, as sm_90 or gfx942")
    parser.add_argument("--threads", type=int, default=256, help="of a block for the occupancy, but of products (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="kernels of Kokkos and others, too")
    parser.add_argument("--json", action="store_true", help="print everything, as JSON")
    parser.add_argument("--page", type=pathlib.Path, help="write the table of bench_layer's kernels into this page")
    parser.add_argument("--width", type=int, default=72, help="of the names in the table (default: %(default)s)")
    parser.add_argument("--cuobjdump", help="the tool; searched for otherwise")
    parser.add_argument("--readelf", help="LLVM's readelf; searched for otherwise")
    options = parser.parse_args()
    if options.threads < 1 or options.threads > 1024:
        parser.error("a block has 1 to 1024 threads")
    for program in options.programs:
        if not program.is_file():
            parser.error(f"{program} is no file")

    kernels = [one for program in options.programs for one in read(program, options)]
    demangle(kernels)
    if options.architecture:
        kernels = [k for k in kernels if k["architecture"] == options.architecture]
    if not options.all:
        kernels = [k for k in kernels if k["of_moe"]]
    if not kernels:
        sys.exit(f"{', '.join(map(str, options.programs))}: no kernels{' of moe' if not options.all else ''}"
                 f"{' for ' + options.architecture if options.architecture else ''}")
    # The same kernel may stand in several translation units.
    kernels = list({(k["architecture"], k["symbol"]): k for k in kernels}.values())
    kernels.sort(key=lambda k: (k["architecture"], -k["registers"], k["name"]))
    for one in kernels:
        one["occupancy"] = occupancy(one, options.threads)
    if options.json:
        print(json.dumps(kernels, indent=1))
        return
    if options.page:
        page = markdown.replace_block(options.page.read_text(), "resources", device_kernels.table(kernels))
        options.page.write_text(page)
        return
    for architecture in sorted({k["architecture"] for k in kernels}):
        of_it = [k for k in kernels if k["architecture"] == architecture]
        print(f"{architecture}: {len(of_it)} kernels; memory in bytes")
        table(of_it, options.width)
        print()


if __name__ == "__main__":
    main()
