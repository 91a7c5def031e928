#!/usr/bin/env python3
"""The model and the training of examples/train_text in PyTorch: prints tokens a second as JSON.

A byte-level decoder with RMSNorm, rotary attention and a mixture of SwiGLU experts in each block; AdamW, gradients
clipped to norm 1, a warm-up and a half cosine, the models' own balancing. Without what train_text does besides:
checkpoints, reports, validation.
"""

import argparse
import json
import math
import os
import pathlib
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--text", nargs="+", required=True, type=pathlib.Path, help="files to train on, each a domain")
parser.add_argument("--model", default="mixtral", choices=("mixtral", "deepseek-v3", "dense"))
parser.add_argument("--experts", default="auto", choices=("auto", "loop", "grouped", "padded"), help="auto: the best")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--batch", type=int, default=16, help="sequences a step")
parser.add_argument("--microbatches", type=int, default=2, help="passes a step, gradients accumulated")
parser.add_argument("--sequence", type=int, default=128, help="bytes a sequence")
parser.add_argument("--hidden", type=int, default=64)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--heads", type=int, default=2)
options = parser.parse_args()
os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))  # before torch, since OpenMP reads it once

import torch
import torch.nn.functional as F
from torch import nn

PEAK = 3e-3
BIAS_RATE = 0.01  # of DeepSeek-V3's balancing


def matrix(*shape):
    return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)


def swiglu(x):
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


class Dense(nn.Module):
    def __init__(self, hidden, intermediate):
        super().__init__()
        self.gate_up, self.down = matrix(2 * intermediate, hidden), matrix(hidden, intermediate)

    def forward(self, x):
        return F.linear(swiglu(F.linear(x, self.gate_up)), self.down)


class Experts(nn.Module):
    """Rows sorted by expert, then one of three ways to compute them."""

    def __init__(self, hidden, intermediate, experts, way):
        super().__init__()
        self.gate_up, self.down = matrix(experts, 2 * intermediate, hidden), matrix(experts, hidden, intermediate)
        self.compute = {"loop": self.loop, "grouped": self.grouped, "padded": self.padded}[way]

    def forward(self, x, weights, chosen, counts):
        order = chosen.reshape(-1).argsort()
        token = order // chosen.shape[1]
        rows = self.compute(x[token], counts, chosen.reshape(-1)[order])
        return torch.zeros_like(x).index_add_(0, token, rows * weights.reshape(-1, 1)[order])

    def loop(self, rows, counts, _):
        parts = rows.split(counts.tolist())
        pairs = zip(parts, self.gate_up, self.down)
        return torch.cat([F.linear(swiglu(F.linear(part, up)), down) for part, up, down in pairs])

    def grouped(self, rows, counts, _):
        ends = counts.cumsum(0).to(torch.int32)
        hidden = swiglu(F.grouped_mm(rows, self.gate_up.transpose(1, 2), offs=ends))
        return F.grouped_mm(hidden, self.down.transpose(1, 2), offs=ends)

    def padded(self, rows, counts, expert):
        """As one batched product, each expert padded to the longest."""
        longest = int(counts.max())
        first = counts.cumsum(0) - counts
        place = expert * longest + torch.arange(len(rows)) - first[expert]
        padded = rows.new_zeros(len(counts) * longest, rows.shape[1]).index_copy(0, place, rows)
        hidden = swiglu(padded.view(len(counts), longest, -1) @ self.gate_up.transpose(1, 2))
        return (hidden @ self.down.transpose(1, 2)).flatten(0, 1)[place]


class Mixtral(nn.Module):
    """Two of 8; Switch's loss on first choices."""

    count, top_k = 8, 2

    def __init__(self, hidden, way):
        super().__init__()
        self.router = matrix(self.count, hidden)
        self.experts = Experts(hidden, 2 * hidden, self.count, way)

    def forward(self, x):
        scores = F.linear(x, self.router).softmax(-1)
        weights, chosen = scores.topk(self.top_k)
        weights = weights / weights.sum(-1, keepdim=True)
        first = torch.bincount(chosen[:, 0], minlength=self.count) / len(x)
        self.loss = 1e-2 * self.count * (first * scores.mean(0)).sum()
        counts = torch.bincount(chosen.reshape(-1), minlength=self.count)
        return self.experts(x, weights, chosen, counts)


class DeepSeekV3(nn.Module):
    """Three of 16 from two of four groups, and a shared one; a balancing bias and a loss by sequence."""

    count, top_k, groups, kept = 16, 3, 4, 2

    def __init__(self, hidden, way):
        super().__init__()
        self.router = matrix(self.count, hidden)
        self.experts = Experts(hidden, hidden, self.count, way)
        self.shared = Dense(hidden, hidden)
        self.register_buffer("bias", torch.zeros(self.count))
        self.register_buffer("load", torch.zeros(self.count))

    def choose(self, scores):
        with torch.no_grad():
            keys = (scores + self.bias).view(-1, self.groups, self.count // self.groups)
            best = keys.topk(2).values.sum(-1).topk(self.kept).indices
            allowed = torch.zeros(len(keys), self.groups, dtype=torch.bool).scatter_(1, best, True)
            return keys.masked_fill(~allowed[..., None], -math.inf).flatten(1).topk(self.top_k).indices

    def forward(self, x):
        scores = F.linear(x, self.router).sigmoid()
        chosen = self.choose(scores)
        weights = scores.gather(1, chosen)
        weights = 1.5 * weights / weights.sum(-1, keepdim=True)
        by_sequence = F.one_hot(chosen, self.count).sum(1).view(-1, options.sequence, self.count)
        share = self.count / self.top_k * by_sequence.float().mean(1)
        mean = (scores / scores.sum(-1, keepdim=True)).view_as(by_sequence).mean(1)
        self.loss = 1e-4 * (share * mean).sum(-1).mean()
        counts = by_sequence.sum((0, 1))
        self.load += counts
        return self.experts(x, weights, chosen, counts) + self.shared(x)

    def balance(self):
        """Once a step."""
        self.bias += BIAS_RATE * (self.load.mean() - self.load).sign()
        self.load.zero_()


class Attention(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.qkv, self.out = matrix(3 * hidden, hidden), matrix(hidden, hidden)
        half = hidden // options.heads // 2
        angle = torch.outer(torch.arange(options.sequence), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cosine", angle.cos())
        self.register_buffer("sine", angle.sin())

    def rotate(self, x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cosine - b * self.sine, a * self.sine + b * self.cosine], -1)

    def forward(self, x):
        heads = F.linear(x, self.qkv).view(-1, options.sequence, 3, options.heads, x.shape[1] // options.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        return F.linear(mixed.transpose(1, 2).reshape_as(x), self.out)


class Block(nn.Module):
    def __init__(self, hidden, way):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(hidden, eps=1e-6), nn.RMSNorm(hidden, eps=1e-6)
        self.attention = Attention(hidden)
        mixtures = {"mixtral": lambda: Mixtral(hidden, way), "deepseek-v3": lambda: DeepSeekV3(hidden, way)}
        self.ffn = mixtures.get(options.model, lambda: Dense(hidden, 4 * hidden))()

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.embedding, self.head = matrix(256, options.hidden), matrix(256, options.hidden)
        self.blocks = nn.ModuleList(Block(options.hidden, way) for _ in range(options.layers))
        self.norm = nn.RMSNorm(options.hidden, eps=1e-6)

    def forward(self, tokens, targets):
        """The mean loss in nats, and what the mixtures add to it. Tokens (sequences, bytes)."""
        x = F.embedding(tokens.reshape(-1), self.embedding)
        for block in self.blocks:
            x = block(x)
        loss = F.cross_entropy(F.linear(self.norm(x), self.head), targets.reshape(-1))
        return loss, sum(getattr(block.ffn, "loss", 0.0) for block in self.blocks)


def draw(texts, step, generator):
    """Sequences, domains in turn, from random places; the last tenth of a text is for validation."""
    rows = []
    for number in range(options.batch):
        text = texts[(step + number) % len(texts)]
        place = int(torch.randint(len(text) * 9 // 10 - options.sequence, (1,), generator=generator))
        rows.append(text[place : place + options.sequence + 1])
    return torch.stack(rows).long()


def rate_at(step):
    warm = options.steps // 20 + 1
    if step < warm:
        return PEAK * (step + 1) / warm
    half = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, options.steps - warm))))
    return PEAK / 10 + (PEAK - PEAK / 10) * half


def train(texts, way, steps):
    """Tokens a second, and the last step's loss in bits a byte."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = Transformer(way)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)
    start = time.perf_counter()
    for step in range(steps):
        bits = 0.0
        for rows in draw(texts, step, generator).chunk(options.microbatches):
            loss, balance = model(rows[:, :-1], rows[:, 1:])
            ((loss + balance) / options.microbatches).backward()
            bits += loss.item() / math.log(2) / options.microbatches
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
        for block in model.blocks:
            if hasattr(block.ffn, "balance"):
                block.ffn.balance()
    return steps * options.batch * options.sequence / (time.perf_counter() - start), bits


def main():
    torch.set_num_threads(options.threads)
    texts = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in options.text]
    ways = ("loop", "grouped", "padded") if options.experts == "auto" else (options.experts,)
    if options.model == "dense":
        ways = ("loop",)
    tried = {}
    for way in ways:
        train(texts, way, 2)
        tried[way] = train(texts, way, 10)[0]
    way = max(tried, key=tried.get)
    rate, bits = train(texts, way, options.steps)
    name = f"torch {torch.__version__.split('+')[0]}" + ("" if options.model == "dense" else f" {way}")
    line = {"impl": name, "model": options.model, "steps": options.steps, "threads": options.threads}
    print(json.dumps(line | {"tokens_per_second": rate, "bits_per_byte": bits, "tried": tried}))


main()
