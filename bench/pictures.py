#!/usr/bin/env python3
"""Draws the report's pictures from its summary: bench/pictures.py SUMMARY FOLDER. Needs matplotlib."""

import argparse
import json
import pathlib
import re

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import matplotlib.ticker

# Colours in matplotlib's file, and the style sheet's names that replace them, with their light and dark values.
COLOURS = {
    "#010101": ("fg", "#1c2024", "#e6e9ec"),
    "#020202": ("bg", "#ffffff", "#14171a"),
    "#030303": ("grid", "#e4e7eb", "#2b3138"),
    "#040404": ("ours", "#d55e00", "#f0742a"),
    "#050505": ("c1", "#0072b2", "#2f8fdc"),
    "#060606": ("c2", "#009e73", "#18b88a"),
    "#070707": ("c3", "#cc79a7", "#dc92bb"),
    "#080808": ("c4", "#8f8200", "#e8dc4a"),
    "#090909": ("c5", "#56b4e9", "#83cbf5"),
    "#0a0a0a": ("c6", "#7d4ea8", "#b48ae0"),
    "#0c0c0c": ("c7", "#b3261e", "#ff8a80"),
    "#0b0b0b": ("muted", "#5b6570", "#9ba5af"),
}
FOREGROUND, BACKGROUND, GRID, OURS, *PEERS, MUTED = COLOURS
MARKERS = "sD^vPX*"
STAGES = {"route": PEERS[0], "dispatch": PEERS[1], "experts": OURS, "combine": PEERS[2], "branches": PEERS[4]}

plt.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "moe",  # the same picture is the same file
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": FOREGROUND,
        "axes.labelcolor": FOREGROUND,
        "axes.edgecolor": MUTED,
        "axes.facecolor": BACKGROUND,
        "figure.facecolor": BACKGROUND,
        "savefig.facecolor": BACKGROUND,
        "xtick.color": FOREGROUND,
        "ytick.color": FOREGROUND,
        "xtick.minor.size": 0,
        "grid.color": GRID,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
)


def save(figure, path, title):
    """Writes an SVG whose colours follow the reader's light or dark scheme."""
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None, "Title": title})
    plt.close(figure)
    text = path.read_text()
    for colour, (name, _, _) in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    light = ";".join(f"--{name}:{value}" for name, value, _ in COLOURS.values())
    dark = ";".join(f"--{name}:{value}" for name, _, value in COLOURS.values())
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    text = re.sub(r"(<svg [^>]*>)", lambda found: found.group(1) + "\n" + style, text, count=1)
    path.write_text(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE))


def without_version(name):
    """An implementation's name as legends have it: versions are in the report."""
    return " ".join(word for word in name.split() if not word[0].isdigit())


def plain_numbers(axis):
    """On logarithmic scales, 50 and 100 instead of powers of ten."""
    for each, steps in ((axis.xaxis, (1,)), (axis.yaxis, (1, 2, 5))):
        each.set_major_locator(matplotlib.ticker.LogLocator(subs=steps))
        each.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        each.set_minor_locator(matplotlib.ticker.NullLocator())


def roofline(cases, path):
    """Rates over arithmetic intensity, under what the machine could do: one panel a dtype."""
    cases = [case for case in cases if case["group"] == "layers" and case["summary"]["peak"]]
    dtypes = list(dict.fromkeys(case["dtype"] for case in cases))
    if not dtypes:
        return
    figure, axes = plt.subplots(1, len(dtypes), figsize=(5.2 * len(dtypes), 4.2), squeeze=False, sharey=True)
    for axis, dtype in zip(axes[0], dtypes):
        mine = [case for case in cases if case["dtype"] == dtype]
        peak = max(case["summary"]["peak"] for case in mine)
        bandwidth = max(case["summary"]["bandwidth"] for case in mine)
        rows = [(row, case) for case in mine for row in case["summary"]["rows"] if row["bytes"] > 0]
        points = [(row["gflops"] * row["min_s"] * 1e9 / row["bytes"], row, case) for row, case in rows]
        left = min([1.0, *(x for x, _, _ in points)]) / 1.5
        right = max([100.0, *(x for x, _, _ in points)]) * 2
        corner = peak / bandwidth
        axis.plot([left, corner, right], [left * bandwidth, peak, peak], color=FOREGROUND, linewidth=1.5)
        axis.text(right, peak * 1.06, f"{peak:.0f} GFLOP/s", ha="right", color=FOREGROUND)
        axis.text(corner * 0.4, peak * 0.4, f"{bandwidth:.0f} GB/s  ", ha="right", color=FOREGROUND)
        for shape_number, name in enumerate(dict.fromkeys(case["shape"] for case in mine)):
            marker = "osD^"[shape_number % 4]
            for x, row, case in points:
                if case["shape"] == name and row["ours"]:
                    axis.plot(x, row["gflops"], marker, color=OURS, markersize=7, zorder=3)
                elif case["shape"] == name and row["ratio"] == 1:
                    axis.plot(x, row["gflops"], marker, color=PEERS[0], fillstyle="none", markersize=8, zorder=2)
            axis.plot([], [], marker, color=MUTED, linestyle="none", label=name)
        axis.plot([], [], "o", color=OURS, linestyle="none", label="moe (filled)")
        axis.plot([], [], "o", color=PEERS[0], linestyle="none", fillstyle="none", label="best peer (hollow)")
        axis.set(xscale="log", yscale="log", title=dtype, xlabel="arithmetic intensity, FLOP / byte of weights")
        plain_numbers(axis)
        axis.grid(True)
    axes[0][0].set_ylabel("GFLOP/s")
    axes[0][0].legend(loc="lower right", fontsize=9)
    save(figure, path, "Rates of layers under the machine's limits")


def growth(cases, path):
    """Rates as experts become more, and as they become finer."""
    panels = (
        ("growth", "experts (two and a shared one a token)", lambda case: case["experts"]),
        ("grain", "experts a token (of eight times as many)", lambda case: case["top_k"]),
    )
    panels = [panel for panel in panels if any(case["group"] == panel[0] for case in cases)]
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.2), squeeze=False, sharey=True)
    names = []
    for axis, (group, label, position) in zip(axes[0], panels):
        lines = {}
        for case in cases:
            for row in case["summary"]["rows"] if case["group"] == group else []:
                key = "moe" if row["ours"] else without_version(row["impl"])
                lines.setdefault(key, []).append((position(case), row["gflops"]))
        for name, points in sorted(lines.items(), key=lambda line: line[0] != "moe"):
            if name not in names:
                names.append(name)
            number = len([other for other in names[: names.index(name)] if other != "moe"])
            ours = name == "moe"
            axis.plot(
                *zip(*sorted(points)),
                marker="o" if ours else MARKERS[number % len(MARKERS)],
                color=OURS if ours else PEERS[number % len(PEERS)],
                linewidth=2.5 if ours else 1.5,
                label=name,
            )
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axis.set(xscale="log", xlabel=label)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.grid(True)
    axes[0][0].set(ylabel="GFLOP/s", ylim=(0, None))
    handles = {handle.get_label(): handle for axis in axes[0] for handle in axis.get_lines()}  # one of each name
    axes[0][0].legend(
        handles=handles.values(), loc="upper center", bbox_to_anchor=(0.5 * len(panels), 1.16), ncols=4, fontsize=9
    )
    save(figure, path, "Rates as experts become more and finer")


def shares(cases, path):
    """Where our time goes."""
    bars = []
    for case in cases:
        for row in case["summary"]["rows"] if case["group"] == "layers" else []:
            if row["ours"] and row["stages"]:
                bars.append((f"{case['shape']} {case['dtype']}, {row['T']}", row["stages"]))
    if not bars:
        return
    bars.reverse()  # the first on top
    figure, axis = plt.subplots(figsize=(8, 1.4 + 0.32 * len(bars)))
    left = [0.0] * len(bars)
    for stage, colour in STAGES.items():
        widths = [100 * stages.get(stage, 0) for _, stages in bars]
        label = "shared experts" if stage == "branches" else stage
        axis.barh([name for name, _ in bars], widths, left=left, color=colour, label=label, height=0.7)
        left = [a + b for a, b in zip(left, widths)]
    axis.set(xlabel="share of the forward pass, %", xlim=(0, 100))
    axis.grid(True, axis="x")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(STAGES), fontsize=9)
    save(figure, path, "Time of the stages of a forward pass")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("summary", type=pathlib.Path, help="as report.py writes it")
    parser.add_argument("folder", type=pathlib.Path, help="where the pictures go")
    options = parser.parse_args()
    cases = json.loads(options.summary.read_text())
    options.folder.mkdir(parents=True, exist_ok=True)
    for draw in (roofline, growth, shares):
        draw(cases, options.folder / f"performance_{draw.__name__}.svg")


if __name__ == "__main__":
    main()
