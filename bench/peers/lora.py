#!/usr/bin/env python3
"""A frozen linear layer with many LoRA adapters and a mixed batch, as peft and as plain torch have it, at the sizes of
bench_lora; with --program, beside that program in one run.

peft: its LoRA layer with `adapter_names`, one a row, which it takes in eval mode; autograd works there. The layer is
called directly, without the model around it. torch: the same sums in three ways without peft's loop over all rows for
each adapter: `segments` sorts the rows and multiplies each adapter's in turn, `grouped` gives the sorted rows to
torch's grouped product, `gathered` copies each row's A and B (FLoRA's bmm)."""

import argparse
import json
import os
import subprocess
import sys
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--in", dest="width_in", type=int, default=1024)
parser.add_argument("--out", dest="width_out", type=int, default=1024)
parser.add_argument("--ranks", default="4,16,64", help="separated by commas, as all lists")
parser.add_argument("--adapters", default="8,64,256,1000")
parser.add_argument("--rows", default="512,2048")
parser.add_argument("--type", default="f32", choices=["f32", "bf16"])
parser.add_argument("--ways", default="peft,segments,grouped,gathered")
parser.add_argument("--most-gathered", type=float, default=2, help="GB of copied matrices; beyond, gathered is left out")
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--seconds", type=float, default=1, help="time for each measurement")
parser.add_argument("--program", help="bench_lora; it runs before and after each case's peers, never beside them, and the better counts")
parser.add_argument("--markdown", action="store_true", help="a table of the cases instead of lines of JSON")
options = parser.parse_args()
scaling = 2.0


def numbers(text):
    return [int(each) for each in text.split(",")]


def cases():
    for rows in numbers(options.rows):
        for rank in numbers(options.ranks):
            for adapters in numbers(options.adapters):
                yield {"in": options.width_in, "out": options.width_out, "rank": rank, "adapters": adapters, "T": rows}


def lines_of(case, command):
    """What a program prints of one case."""
    arguments = ["--in", str(case["in"]), "--out", str(case["out"]), "--ranks", str(case["rank"])]
    arguments += ["--adapters", str(case["adapters"]), "--rows", str(case["T"]), "--type", options.type]
    arguments += ["--threads", str(options.threads), "--seconds", str(options.seconds)]
    ran = subprocess.run(command + arguments, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def best(lines):
    return {key: min(line[key] for line in lines) for key in ("forward_s", "train_s")}


def row(case, moe, lines):
    cells = [case["T"], case["rank"], case["adapters"]]
    cells += [f"{1e3 * moe['forward_s']:.1f}", f"{1e3 * moe['train_s']:.1f}"]
    others = [line for line in lines if not line["impl"].startswith("peft")]
    for group in ([line for line in lines if line not in others], others):
        for key in ("forward_s", "train_s"):
            if not group:
                cells.append("")
                continue
            line = min(group, key=lambda one: one[key])
            named = f" ({line['impl'].split(', ')[1]})" if group is others else ""
            cells.append(f"{1e3 * line[key]:.1f}, {line[key] / moe[key]:.1f}x{named}")
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def run_both():
    """Both, in turn. Each is a process of its own, so that no thread of one waits while the other is timed."""
    moe = [options.program, "--json"]
    peers = [sys.executable, __file__, "--ways", options.ways, "--most-gathered", str(options.most_gathered)]
    if options.markdown:
        print("| rows | rank | adapters | forward ms | train ms | peft forward | peft train | torch forward | torch train |")
        print("|---" * 9 + "|", flush=True)
    for case in cases():
        before, lines, after = lines_of(case, moe), lines_of(case, peers), lines_of(case, moe)
        if options.markdown:
            row(case, best(before + after), lines)
        else:
            for line in before + lines + after:
                print(json.dumps(line), flush=True)


if options.program:
    run_both()
    sys.exit()

os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))  # before torch: OpenMP reads it once

import peft
import torch
from peft import LoraConfig
from torch.nn.functional import linear

torch.set_num_threads(options.threads)
dtype = torch.float32 if options.type == "f32" else torch.bfloat16


def least(f):
    f()
    times = []
    while len(times) < 3 or sum(times) < options.seconds:
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)


class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(options.width_in, options.width_out, bias=False, dtype=dtype)

    def forward(self, x):
        return self.linear(x)


class Peft:
    """peft's layer, called with a name a row."""

    name = f"peft {peft.__version__}"

    def __init__(self, base, a, b, ids):
        model = Base()
        model.linear.weight.data.copy_(base)
        rank = a.shape[1]
        config = LoraConfig(r=rank, lora_alpha=scaling * rank, target_modules=["linear"], lora_dropout=0.0)
        model = peft.get_peft_model(model, config, adapter_name="0", autocast_adapter_dtype=False)
        self.layer = model.base_model.model.linear
        for n in range(1, len(a)):
            self.layer.update_layer(str(n), r=rank, lora_alpha=scaling * rank, config=config)
        self.layer.eval()
        with torch.no_grad():
            for n in range(len(a)):
                self.layer.lora_A[str(n)].weight.data = a[n].clone()
                self.layer.lora_B[str(n)].weight.data = b[n].clone()
        for name, parameter in self.layer.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self.names = [str(n) for n in ids.tolist()]

    def parameters(self):
        return [p for p in self.layer.parameters() if p.requires_grad]

    def __call__(self, x):
        return self.layer(x, adapter_names=self.names)


class Segments:
    """Sorted rows, one adapter's after another's."""

    name = "torch, segments"

    def __init__(self, base, a, b, ids):
        self.base = base
        self.order = torch.argsort(ids, stable=True)
        self.back = torch.argsort(self.order)
        used, self.counts = torch.unique(ids, return_counts=True)
        self.counts = self.counts.tolist()
        self.a = [a[n].clone().requires_grad_() for n in used.tolist()]
        self.b = [b[n].clone().requires_grad_() for n in used.tolist()]

    def parameters(self):
        return self.a + self.b

    def __call__(self, x):
        parts = torch.split(x.index_select(0, self.order), self.counts)
        update = torch.cat([part @ a.T @ b.T for part, a, b in zip(parts, self.a, self.b)])
        return linear(x, self.base) + scaling * update.index_select(0, self.back)


class Grouped:
    """Sorted rows by torch's grouped product."""

    name = "torch, grouped_mm"

    def __init__(self, base, a, b, ids):
        self.base = base
        self.order = torch.argsort(ids, stable=True)
        self.back = torch.argsort(self.order)
        self.offsets = torch.cumsum(torch.bincount(ids, minlength=len(a)), 0).to(torch.int32)
        self.a = a.clone().requires_grad_()
        self.b = b.clone().requires_grad_()

    def parameters(self):
        return [self.a, self.b]

    def __call__(self, x):
        product = torch.nn.functional.grouped_mm
        hidden = product(x.index_select(0, self.order), self.a.transpose(1, 2), offs=self.offsets)
        update = product(hidden, self.b.transpose(1, 2), offs=self.offsets)
        return linear(x, self.base) + scaling * update.index_select(0, self.back)


class Gathered:
    """A copy of its adapter for each row."""

    name = "torch, gathered bmm"

    def __init__(self, base, a, b, ids):
        self.base, self.ids = base, ids
        self.a = a.clone().requires_grad_()
        self.b = b.clone().requires_grad_()

    def parameters(self):
        return [self.a, self.b]

    def __call__(self, x):
        hidden = torch.bmm(self.a.index_select(0, self.ids), x[:, :, None])
        return linear(x, self.base) + scaling * torch.bmm(self.b.index_select(0, self.ids), hidden)[:, :, 0]


ways = {"peft": Peft, "segments": Segments, "grouped": Grouped, "gathered": Gathered}


def peers(case):
    torch.manual_seed(1)
    n, rank = case["adapters"], case["rank"]
    base = torch.randn(options.width_out, options.width_in, dtype=dtype) * options.width_in**-0.5
    a = torch.randn(n, rank, options.width_in, dtype=dtype) * options.width_in**-0.5
    b = torch.randn(n, options.width_out, rank, dtype=dtype) * 0.01
    ids = torch.randint(n, (case["T"],))
    x = torch.randn(case["T"], options.width_in, dtype=dtype, requires_grad=True)
    dy = torch.randn(case["T"], options.width_out, dtype=dtype)
    lines, first = [], None
    for way in options.ways.split(","):
        size = base.element_size() * case["T"] * rank * (options.width_in + options.width_out) * 1e-9
        if way == "gathered" and size > options.most_gathered:
            continue
        layer = ways[way](base, a, b, ids)
        parameters = layer.parameters()

        def forward():
            with torch.no_grad():
                return layer(x)

        def train():
            x.grad = None
            for parameter in parameters:
                parameter.grad = None
            layer(x).backward(dy)

        y = forward().float()
        first = y if first is None else first
        assert (y - first).abs().max() < 0.05 * first.abs().max(), f"{layer.name} computes something else"
        lines.append({"impl": layer.name, "type": options.type, **case, "threads": options.threads,
                      "forward_s": least(forward), "train_s": least(train)})
        del layer, parameters
    return lines


for each in cases():
    for line in peers(each):
        print(json.dumps(line), flush=True)
