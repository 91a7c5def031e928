"""What the report measures: each case is one shape, dtype and list of tokens, compared on its own."""

from dataclasses import dataclass

from peers import shapes

TOKENS = (512, 2048)
GROWING = (8, 64, 512)  # experts, two a token
GRAIN = (1, 8, 64)  # each of 8 experts is cut into so many, as many a token
SKEWS = (0.0, 1.0)


@dataclass(frozen=True)
class Case:
    name: str
    group: str  # the section of the report
    shape: shapes.Shape
    dtype: str
    tokens: tuple
    skew: float = 0.0


def all_cases():
    cases = []
    for dtype in shapes.BYTES:
        for shape in shapes.NAMED.values():
            cases.append(Case(f"layers/{shape.name}/{dtype}", "layers", shape, dtype, TOKENS))
    for experts in GROWING:
        shape = shapes.parse(f"1024/512/{experts}/2/0")
        cases.append(Case(f"growth/{experts}", "growth", shape, "bf16", (2048,)))
    for cut in GRAIN:
        shape = shapes.parse(f"1024/{4096 // cut}/{8 * cut}/{cut}/0")
        cases.append(Case(f"grain/{cut}", "grain", shape, "f32", (512,)))
    for skew in SKEWS:
        cases.append(Case(f"skew/{skew}", "skew", shapes.NAMED["dsmoe-s"], "f32", (2048,), skew))
    return cases
