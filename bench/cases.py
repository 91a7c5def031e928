"""What the report measures: each case is one shape, dtype and list of tokens, compared on its own."""

from dataclasses import dataclass

from peers import shapes

TOKENS = (512, 2048)
FEW = (1, 4, 32)
TRAINED = {"f32": ("mixtral-s", "dsmoe-s", "dsv3-s"), "bf16": ("mixtral-s", "dsmoe-s")}
INT8 = ("dsmoe-s", "dsv3-s")
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
    mode: str = "forward"


def all_cases():
    cases = []
    for dtype in ("f32", "bf16"):
        for name, shape in shapes.NAMED.items():
            cases.append(Case(f"layers/{name}/{dtype}", "layers", shape, dtype, TOKENS))
    for dtype in ("f32", "bf16"):
        for name, shape in shapes.NAMED.items():
            cases.append(Case(f"decode/{name}/{dtype}", "decode", shape, dtype, FEW, mode="decode"))
    for name in INT8:
        shape = shapes.NAMED[name]
        cases.append(Case(f"int8/{name}/few", "int8", shape, "int8", FEW[:2], mode="decode"))
        cases.append(Case(f"int8/{name}/many", "int8", shape, "int8", TOKENS))
    for dtype, names in TRAINED.items():
        for name in names:
            shape = shapes.NAMED[name]
            cases.append(Case(f"training/{name}/{dtype}", "training", shape, dtype, (2048,), mode="train"))
    for experts in GROWING:
        shape = shapes.parse(f"1024/512/{experts}/2/0")
        cases.append(Case(f"growth/{experts}", "growth", shape, "bf16", (2048,)))
    for cut in GRAIN:
        shape = shapes.parse(f"1024/{4096 // cut}/{8 * cut}/{cut}/0")
        cases.append(Case(f"grain/{cut}", "grain", shape, "f32", (512,)))
    for skew in SKEWS:
        cases.append(Case(f"skew/{skew}", "skew", shapes.NAMED["dsmoe-s"], "f32", (2048,), skew))
    return cases
