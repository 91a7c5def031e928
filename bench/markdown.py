"""The generated parts of docs/performance.md. Everything outside their markers is written by hand and stays."""

import re

import compare

STAGES = ("route", "dispatch", "experts", "combine", "branches")
# By shape: best peer / ours at 512 and at 2048 tokens, and the share of the bound.
GOALS = {
    "mixtral-s": {512: (1.02, 0.94), 2048: (1.02, 0.94)},
    "dsmoe-s": {512: (1.12, 0.92), 2048: (1.08, 0.92)},
    "dsv3-s": {512: (1.30, 0.87), 2048: (1.12, 0.91)},
    "switch": {512: (1.25, 0.92), 2048: (1.25, 0.92)},
}


def replace_block(text, name, content):
    """Puts content between the markers of a name; adds them at the end where they are missing."""
    begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
    block = f"{begin}\n{content.strip()}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: block, text, count=1)
    return f"{text.rstrip()}\n\n{block}\n"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def number(value, form):
    return "–" if value is None else format(value, form)


def ours_and_best(summary, tokens):
    """Our row and the best peer's for a number of tokens; None where there is none."""
    rows = [row for row in summary["rows"] if row["T"] == tokens]
    ours = next((row for row in rows if row["ours"]), None)
    best = next((row for row in rows if not row["ours"]), None)  # rows are sorted by time
    return ours, best


def field(row, name):
    return row.get(name) if row else None


def milliseconds(row, form=".1f"):
    return number(row["s"] * 1e3 if row else None, form)


def machine(description, date, limits):
    rows = [(name, ", ".join(value) if isinstance(value, list) else str(value)) for name, value in description.items()]
    rows.append(("measured on", date))
    units = {"gflops": "GFLOP/s in f32", "bf16_gflops": "GFLOP/s in bf16", "int8_gflops": "GFLOP/s in int8"}
    for name, unit in (units | {"gbs": "GB/s read"}).items():
        found = [each[name] for each in limits if name in each]
        if found:
            low, high = min(found), max(found)
            rows.append((f"limit, {unit}", f"{high:.0f} (lowest seen: {low:.0f})"))
    return table(("", ""), [(name, value or "none installed") for name, value in rows])


def layers(cases, summaries):
    head = ("shape", "dtype", "tokens", "ms", "GFLOP/s", "of the bound", "goal")
    head += ("best peer", "its ms", "best peer / ours", "goal")
    rows = []
    for case in cases:
        for tokens in case.tokens:
            ours, best = ours_and_best(summaries[case.name], tokens)
            goal_ratio, goal_share = GOALS[case.shape.name][tokens]
            rows.append(
                (
                    case.shape.name,
                    case.dtype,
                    str(tokens),
                    milliseconds(ours),
                    number(field(ours, "gflops"), ".0f"),
                    number(field(ours, "bound_share"), ".0%"),
                    f"{goal_share:.0%}",
                    best["impl"] if best else "–",
                    milliseconds(best),
                    number(field(ours, "ratio"), ".2f"),
                    f"{goal_ratio:.2f}",
                )
            )
    return table(head, rows)


def beside_best(cases, summaries, heads, values):
    """A line a case and number of tokens: what `values` makes of our row, the best peer and the ratio."""
    head = ("shape", "dtype", "tokens", "ms", *heads, "best peer", "its ms", "best peer / ours")
    rows = []
    for case in cases:
        for tokens in case.tokens:
            ours, best = ours_and_best(summaries[case.name], tokens)
            rows.append(
                (
                    case.shape.name,
                    case.dtype,
                    str(tokens),
                    milliseconds(ours, ".2f"),
                    *values(ours),
                    best["impl"] if best else "–",
                    milliseconds(best, ".2f"),
                    number(field(ours, "ratio"), ".2f"),
                )
            )
    return table(head, rows)


def decode(cases, summaries):
    """Medians: of times, of shares of the bandwidth around each pass, of ratios within a round."""
    values = lambda ours: (number(field(ours, "gbs"), ".1f"), number(field(ours, "read_share"), ".0%"))
    return beside_best(cases, summaries, ("GB/s", "of reading"), values)


def int8(cases, summaries):
    values = lambda ours: (
        number(field(ours, "gflops"), ".0f"),
        number(field(ours, "read_share"), ".0%"),
        number(field(ours, "bound_share"), ".0%"),
    )
    return beside_best(cases, summaries, ("GFLOP/s", "of reading", "of the bound"), values)


def training(cases, summaries):
    heads = ("GFLOP/s", "of the bound", "kept kB a token", *STAGES)

    def values(ours):
        kept, stages = field(ours, "kept"), field(ours, "stages") or {}
        return (
            number(field(ours, "gflops"), ".0f"),
            number(field(ours, "bound_share"), ".0%"),
            number(kept / 1e3 if kept else None, ".1f"),
            *(number(stages.get(stage, 0) if stages else None, ".1%") for stage in STAGES),
        )

    return beside_best(cases, summaries, heads, values)


def everyone(cases, summaries):
    """Every implementation's row of every layer."""
    head = ("shape", "dtype", "tokens", "implementation", "min ms", "median ms", "GFLOP/s", "GB/s")
    head += ("of the bound", "best peer / this")
    rows = []
    for case in cases:
        for row in summaries[case.name]["rows"]:
            rows.append(
                (
                    case.shape.name,
                    case.dtype,
                    str(row["T"]),
                    f"**{row['impl']}**" if row["ours"] else row["impl"],
                    milliseconds(row),
                    number(row["med_s"] * 1e3, ".1f"),
                    number(row["gflops"], ".0f"),
                    number(row["gbs"], ".1f"),
                    number(row.get("bound_share"), ".0%"),
                    number(row["ratio"], ".2f"),
                )
            )
    return table(head, rows)


def series(cases, summaries, heads, values):
    """One line a case of a series: our rate beside the best peer's."""
    head = (*heads, "ms", "GFLOP/s", "of the bound", "best peer", "its GFLOP/s", "best peer / ours")
    rows = []
    for case in cases:
        ours, best = ours_and_best(summaries[case.name], case.tokens[0])
        rows.append(
            (
                *values(case),
                milliseconds(ours),
                number(field(ours, "gflops"), ".0f"),
                number(field(ours, "bound_share"), ".0%"),
                best["impl"] if best else "–",
                number(field(best, "gflops"), ".0f"),
                number(field(ours, "ratio"), ".2f"),
            )
        )
    return table(head, rows)


def stages(cases, summaries):
    rows = []
    for case in cases:
        for tokens in case.tokens:
            ours, _ = ours_and_best(summaries[case.name], tokens)
            if ours and ours["stages"]:
                shares = [f"{ours['stages'].get(stage, 0):.1%}" for stage in STAGES]
                rows.append((case.shape.name, case.dtype, str(tokens), *shares))
    return table(("shape", "dtype", "tokens", *STAGES), rows)


def left_out(summaries):
    """One line a peer and reason, and the rounds that were rejected."""
    seen = {}
    for name, summary in summaries.items():
        for peer, reason in summary["reasons"].items():
            seen.setdefault((peer, reason), []).append(name)
    absent = sorted(peer for peer, reason in seen if reason == "is not installed")
    lines = []
    if absent:
        lines.append(f"- Not installed, so not measured: {', '.join(absent)}; `bench/peers/setup.sh` installs them.")
    for (peer, reason), names in sorted(seen.items()):
        if peer not in absent:
            lines.append(f"- {peer}: {reason} ({', '.join(names)}).")
    rejected = sum(summary["rounds"] - summary["kept"] for summary in summaries.values())
    rounds = sum(summary["rounds"] for summary in summaries.values())
    share = f"{compare.TOLERANCE:.0%}"
    lines.append(f"- {rejected} of {rounds} rounds rejected, their probe of the peak over {share} under the best.")
    most = max((summary["others"] for summary in summaries.values()), default=0)
    lines.append(f"- Other programs had up to {most:.0%} of the processors in the rounds kept.")
    disturbed = [name for name, summary in summaries.items() if summary["kept"] == 0]
    if disturbed:
        lines.append(f"- No round kept, `bench/report.py --resume` tries again: {', '.join(disturbed)}.")
    return "\n".join(lines)
