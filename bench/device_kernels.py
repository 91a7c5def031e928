"""What the names of kernels tell: the threads and the scratch memory of a product's teams, and the work a kernel does."""

import re

import markdown

EXPERTS = 256  # as many as a product's teams have in their table
LINE = 16  # bytes
SIZES = {"float8_e4m3": 1, "bfloat16": 2, "float16": 2, "float": 4, "double": 8}
TILE = re.compile(r"TileProduct<(\w+), (\w+)<\w+, ([\d, ]+)>, (true|false), (true|false)")

# Of a layer in bf16 with SwiGLU. Where several kernels match, the one with the most registers is told: on sm_90a that of
# warpgroups, which is empty elsewhere.
LARGE = r"TileProduct<bfloat16, (?:W\w+Tile<bfloat16, 128, |WarpgroupTile<)"
FEW = r"TileProduct<bfloat16, W\w+Tile<bfloat16, 16, "
WORK = [
    ("logits of many tokens", r"Dots<float, 32, 16, "),
    ("logits of few tokens", r"Dots<float, 32, 2, "),
    ("routing, DeepSeek-V3", r"RouteToken<.*Sigmoid.*GroupLimit"),
    ("routing, Mixtral", r"RouteToken<.*Softmax.*NormalizeSum"),
    ("plan: counts", r"CountByTeams<"),
    ("plan: places", r"PlaceByTeams<"),
    ("gate and up, many rows", LARGE + r".*Activate<bfloat16, SwiGLU>"),
    ("gate and up, few rows", FEW + r".*Activate<bfloat16, SwiGLU>"),
    ("down, many rows", LARGE + r".*true, true, Store<"),
    ("down, few rows", FEW + r".*true, true, Store<"),
    ("gradient of rows", LARGE + r".*true, false, Store<"),
    ("gradient of weights", LARGE + r".*false, false, Store<"),
    ("gradient of SwiGLU", r"PullRow<SwiGLU, bfloat16"),
    ("combine", r"CombineByTeam<bfloat16"),
    ("gate and up in f32, plain threads", r"TileProduct<float, ThreadTile.*Activate<float, SwiGLU>"),
]


def team_of(name):
    """(threads, bytes of scratch memory) of the teams of a product, as TileProduct::bytes_of has them; None of others."""
    found = TILE.search(name)
    if not found:
        return None
    size, numbers = SIZES[found[1]], [int(n) for n in found[3].split(",")]
    alignment, behind_line = LINE, LINE // size
    if found[2] == "ThreadTile":
        threads, parts, depth = numbers
        rows = columns = 64
        stages = 2
    elif found[2] == "WarpgroupTile":
        columns, parts, stages = numbers
        rows, depth, threads, alignment, behind_line = 128, 64, 256, 1024, 0
    else:
        rows, columns, depth, down, across, parts, *stages = numbers
        threads = (32 if found[2] == "WarpTile" else 64) * down * across
        stages = stages[0] if stages else 2

    def operand(count, along):
        inner, outer = (depth, count) if along else (count, depth)
        return outer * (inner + behind_line)

    stage = operand(rows, found[4] == "true") + parts * operand(columns, found[5] == "true")
    table = -(-(EXPERTS + 1 + threads) * 4 // alignment) * alignment
    return threads, table + stages * stage * size


def cell(kernel):
    if kernel is None:
        return "–"
    registers, shared, part = kernel["registers"], kernel["shared"] + kernel["scratch"], kernel["occupancy"]
    lost = f", {kernel['stack']} B of stack" if kernel["stack"] else ""
    return f"{registers}, {shared / 1024:.0f} KB, {100 * part:.3g}%{lost}"


def table(kernels):
    """A line for each work, a column for each architecture."""
    architectures = sorted({k["architecture"] for k in kernels}, key=lambda a: (a[:2] != "sm", len(a.rstrip("a")), a))
    rows = []
    for work, pattern in WORK:
        found = [k for k in kernels if re.search(pattern, k["name"])]
        most = lambda a: max((k for k in found if k["architecture"] == a), key=lambda k: k["registers"], default=None)
        if found:
            rows.append([work, *(cell(most(a)) for a in architectures)])
    return markdown.table(["work", *architectures], rows)
