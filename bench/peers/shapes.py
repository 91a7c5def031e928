"""The layers that are measured, and how their arithmetic and their memory are counted. Needs nothing but Python."""

from dataclasses import dataclass, replace

BYTES = {"f32": 4, "bf16": 2, "int8": 1}
MODES = ("forward", "decode", "train")  # decode: few tokens, weights from memory; train: forward and backward


@dataclass(frozen=True)
class Shape:
    """Sizes as published models have them, divided so that a laptop holds them."""

    name: str
    router: str  # mixtral, deepseek-v2, deepseek-v3 or switch
    hidden: int
    intermediate: int  # of one expert
    experts: int
    top_k: int  # experts a token
    shared: int = 0  # experts that every token visits, each of `intermediate`
    groups: int = 1
    kept_groups: int = 1

    @property
    def gated(self):
        """Whether experts multiply by a gate, and so have three matrices instead of two."""
        return self.router != "switch"

    @property
    def matrices(self):
        return 3 if self.gated else 2

    def flops(self, tokens, mode="forward"):
        """Of the experts that tokens visit, shared ones included; routing is not counted."""
        passes = 3 if mode == "train" else 1
        return 2.0 * passes * self.matrices * self.hidden * self.intermediate * (self.top_k + self.shared) * tokens

    def expert_bytes(self, dtype):
        return self.matrices * self.hidden * self.intermediate * BYTES[dtype]

    def touched_bytes(self, distinct_experts, dtype, mode="forward"):
        """Weights moved at least: of each expert that some token visits, and of the shared ones.

        Training reads them twice, and reads and writes their gradients.
        """
        times = 4 if mode == "train" else 1
        return times * (distinct_experts + self.shared) * self.expert_bytes(dtype)


NAMED = {
    shape.name: shape
    for shape in (
        Shape("mixtral-s", "mixtral", 1024, 3584, experts=8, top_k=2),
        Shape("dsmoe-s", "deepseek-v2", 1024, 704, experts=64, top_k=6, shared=2),
        Shape("dsv3-s", "deepseek-v3", 1792, 512, experts=256, top_k=8, shared=1, groups=8, kept_groups=4),
        Shape("switch", "switch", 768, 3072, experts=8, top_k=1),
    )
}

# Whole, for devices.
WHOLE = {
    shape.name: shape
    for shape in (
        Shape("mixtral-8x7b", "mixtral", 4096, 14336, experts=8, top_k=2),
        Shape("qwen3-235b", "mixtral", 4096, 1536, experts=128, top_k=8),
        Shape("deepseek-v3", "deepseek-v3", 7168, 2048, experts=256, top_k=8, shared=1, groups=8, kept_groups=4),
    )
}

SYNTAX = f"{', '.join(NAMED | WHOLE)}, or HIDDEN/INTERMEDIATE/EXPERTS/TOP_K/SHARED with a softmax router"


def parse(text):
    """A shape by its name, or one of your own as five numbers."""
    if text in NAMED | WHOLE:
        return (NAMED | WHOLE)[text]
    try:
        numbers = [int(number) for number in text.split("/")]
        shape = Shape("own", "deepseek-v2", *numbers)
        valid = len(numbers) == 5 and min(numbers[:4]) > 0 and numbers[4] >= 0 and shape.top_k <= shape.experts
    except (ValueError, TypeError):
        valid = False
    if not valid:
        raise ValueError(f"'{text}' is no shape: give {SYNTAX}")
    return replace(shape, name=text)
