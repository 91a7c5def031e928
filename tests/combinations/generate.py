#!/usr/bin/env python3
"""Writes tests from table.json: combinations of router policies, and the pairs that must be refused.

    generate.py TABLE OUTPUT_DIR [--count N] [--files N]

Combinations cover every allowed pair of values, then fill up to N at random (with a fixed seed). Nothing is written that
stands there already.
"""
import argparse
import itertools
import json
import pathlib
import random


def value_of(axes, text):
    axis, name = text.split(": ", 1)
    for value in axes[axis]:
        if value["name"] == name:
            return axis, value
    raise SystemExit(f"table.json: no '{name}' on the axis '{axis}'")


def combinations(table, count):
    axes = table["axes"]
    names = list(axes)
    refused = set()
    for entry in table["forbidden"] + table["left out"]:
        (a, left), (b, right) = (value_of(axes, text) for text in entry["pair"])
        refused.add(frozenset(((a, left["name"]), (b, right["name"]))))

    def allowed(chosen):
        return not any(frozenset(pair) in refused for pair in itertools.combinations(chosen.items(), 2))

    wanted = set()
    for a, b in itertools.combinations(names, 2):
        for left, right in itertools.product(axes[a], axes[b]):
            pair = frozenset(((a, left["name"]), (b, right["name"])))
            if pair not in refused:
                wanted.add(pair)

    draw = random.Random(1)
    result, seen, missed = [], set(), set()

    def complete(fixed):
        """Values for the other axes, at random; None where the fixed ones leave no way."""
        for _ in range(300):
            chosen = dict(fixed)
            for name in draw.sample(names, len(names)):
                if name not in chosen:
                    options = [v["name"] for v in axes[name] if allowed({**chosen, name: v["name"]})]
                    if not options:
                        break
                    chosen[name] = draw.choice(options)
            if len(chosen) == len(names):
                return {name: chosen[name] for name in names}
        return None

    def add(chosen):
        key = tuple(chosen.values())
        if key in seen:
            return
        seen.add(key)
        result.append(chosen)
        for pair in itertools.combinations(chosen.items(), 2):
            wanted.discard(frozenset(pair))

    while wanted - missed:
        pair = min(wanted - missed, key=sorted)
        tries = [complete(dict(pair)) for _ in range(20)]
        tries = [t for t in tries if t is not None]
        if not tries:
            missed.add(pair)  # a third value that the pair needs is refused by one of the two
            continue
        add(max(tries, key=lambda t: sum(frozenset(p) in wanted for p in itertools.combinations(t.items(), 2))))
    while len(result) < count:
        add(complete({}))
    return result


def router_of(axes, chosen):
    values = [next(v for v in axes[axis] if v["name"] == name) for axis, name in chosen.items()]
    types = ", ".join(v["type"] for v in values if "type" in v)
    objects = ", ".join(v["value"] for v in values if "value" in v)
    reference = "\n    ".join(v["reference"] for v in values if "reference" in v)
    return f"moe::Router<{types}>", objects, reference


def write(path, text):
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=208)
    parser.add_argument("--files", type=int, default=8)
    arguments = parser.parse_args()
    table = json.loads(arguments.table.read_text())
    arguments.output.mkdir(parents=True, exist_ok=True)

    cases = combinations(table, arguments.count)
    for number in range(arguments.files):
        text = '#include <moe_test/catch.hpp>\n\n#include "combination.hpp"\n\n'
        text += f'TEST_CASE("Combinations of router policies agree with the reference, part {number + 1}") {{\n'
        for chosen in cases[number :: arguments.files]:
            router, objects, reference = router_of(table["axes"], chosen)
            name = ", ".join(chosen.values())
            text += f"  {{\n    reference::RouterDescription d;\n    {reference}\n"
            text += f'    combination::check("{name}", {router}{{{objects}}}, d);\n  }}\n'
        write(arguments.output / f"combinations_{number + 1}.cpp", text + "}\n")

    text = "#include <moe/moe.hpp>\n\n"
    says = {}
    refused = [(router_of(table["axes"], dict((a, v["name"]) for a, v in (value_of(table["axes"], t) for t in e["pair"])))[0],
                e["says"]) for e in table["forbidden"]]
    refused += [(e["router"], e["says"]) for e in table["also forbidden"]]
    for router, sentence in refused:
        text += f"template class {router};\n"
        says[str(text.count("\n"))] = {"router": router, "says": sentence}
    write(arguments.output / "forbidden.cpp", text)
    write(arguments.output / "forbidden.json", json.dumps(says, indent=1) + "\n")
    print(f"{len(cases)} combinations, {len(says)} refused pairs")


if __name__ == "__main__":
    main()
