"""The generated parts of docs/devices.md, from what device.py measured. What lies outside their markers stays."""

import markdown

SMALL = 8  # up to so many tokens a pass is bound by reading weights
WALK = ("route", "dispatch", "combine")  # the way of tokens to experts and back


def ours_of(rows):
    return next((row for row in rows if row["impl"] == "moe" and "failed" not in row), None)


def best_peer(rows):
    peers = [row for row in rows if row["impl"] != "moe" and "failed" not in row]
    return min(peers, key=lambda row: row["med_s"], default=None)


def share(value, whole):
    return value / whole if whole else None


def summary(rows, limits):
    """Of one shape, mode and number of tokens: our numbers beside the device's limits and the best peer."""
    ours, best = ours_of(rows), best_peer(rows)
    if ours is None:
        return None
    seconds, stages = ours["med_s"], ours.get("stages") or {}
    return {
        "seconds": seconds,
        "tflops": ours["flops"] / seconds * 1e-12,
        "of_peak": share(ours["flops"] / seconds * 1e-12, limits.get("bf16_tflops")),
        "gbs": ours["bytes"] / seconds * 1e-9,
        "of_copy": share(ours["bytes"] / seconds * 1e-9, limits.get("copy_gbs")) if ours["T"] <= SMALL else None,
        "peer": best["impl"] if best else None,
        "peer_seconds": best["med_s"] if best else None,
        "ratio": best["med_s"] / seconds if best else None,
        "walk": sum(stages.get(stage, 0.0) for stage in WALK) if stages else None,
    }


def table(cases, measured, limits):
    """A line a case and number of tokens that was measured."""
    head = ("shape", "pass", "tokens", "ms", "TFLOP/s", "of the peak", "GB/s", "of copies")
    head += ("best peer", "its ms", "best peer / ours", "route, dispatch, combine")
    lines = []
    for case in cases:
        for tokens in case.tokens:
            rows = [row for row in measured.get(case.name, []) if row.get("T") == tokens]
            found = summary(rows, limits)
            if found is None:
                continue
            lines.append(
                (
                    case.shape.name,
                    case.mode,
                    str(tokens),
                    markdown.number(found["seconds"] * 1e3, ".3f"),
                    markdown.number(found["tflops"], ".1f"),
                    markdown.number(found["of_peak"], ".1%"),
                    markdown.number(found["gbs"], ".0f"),
                    markdown.number(found["of_copy"], ".1%"),
                    found["peer"] or "–",
                    markdown.number(found["peer_seconds"] and found["peer_seconds"] * 1e3, ".3f"),
                    markdown.number(found["ratio"], ".2f"),
                    markdown.number(found["walk"], ".1%"),
                )
            )
    return markdown.table(head, lines)


def left_out(measured):
    """A line for each reason, with the cases that it stopped and their numbers of tokens."""
    seen = {}
    for name, rows in measured.items():
        for row in rows:
            if "failed" in row:
                tokens = seen.setdefault((row["impl"], row["failed"]), {}).setdefault(name, [])
                if row.get("T"):
                    tokens.append(str(row["T"]))
    lines = []
    for (impl, reason), cases in sorted(seen.items()):
        each = [f"{name} of {', '.join(tokens)} tokens" if tokens else name for name, tokens in cases.items()]
        where = "all cases" if len(cases) == len(measured) > 1 else "; ".join(each)
        lines.append(f"- {impl}: {reason} ({where}).")
    return "\n".join(lines) or "- Nothing."


def machine(description, limits):
    rows = list(description.items())
    if limits.get("bf16_tflops"):
        rows.append(("peak, TFLOP/s in bf16", f"{limits['bf16_tflops']:.0f} (a product of 8192 x 8192, measured)"))
    if limits.get("copy_gbs"):
        rows.append(("bandwidth, GB/s copied", f"{limits['copy_gbs']:.0f} (measured)"))
    return markdown.table(("", ""), rows)


def write(page, cases, data):
    """Replaces the generated parts of the page; adds them at its end where they are missing."""
    text = page.read_text() if page.exists() else "# Devices\n"
    limits = data["limits"]
    text = markdown.replace_block(text, "device", machine(data["machine"], limits))
    text = markdown.replace_block(text, "device layers", table(cases, data["rows"], limits))
    text = markdown.replace_block(text, "device left out", left_out(data["rows"]))
    page.write_text(text)
