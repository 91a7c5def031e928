"""Inputs for peers that take the routing as given: tokens, chosen experts, weights, and what should come out.

These peers have no shared experts, so those are extra experts that every token chooses with weight 1: the same
arithmetic.
"""

import torch

import measure

CHECKED = 4  # tokens whose result is compared with a plain computation
TOLERANCE = {"f32": 1e-3, "bf16": 3e-2, "int8": 5e-2}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}  # of tokens


def weights(shape, rows, columns, dtype):
    """(experts + shared, rows, columns) of random values, repeated, since drawing all takes longer than measuring."""
    if dtype == torch.int8:
        block = torch.randint(-127, 128, (1 << 20,), dtype=dtype)
    else:
        block = (torch.randn(1 << 20) * 0.02).to(dtype)
    result = torch.empty(shape.experts + shape.shared, rows, columns, dtype=dtype)
    flat = result.view(-1)
    for start in range(0, flat.numel(), block.numel()):
        end = min(flat.numel(), start + block.numel())
        flat[start:end] = block[: end - start]
    return result


class Batch:
    """One input and its routing."""

    def __init__(self, shape, tokens, dtype, router):
        x = torch.randn(tokens, shape.hidden)
        x[:, 0] = 1  # the router's first column is a bias
        probabilities, chosen = torch.softmax(x @ router.t(), -1).topk(shape.top_k)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        always = torch.arange(shape.experts, shape.experts + shape.shared).expand(tokens, shape.shared)
        self.x = x.to(dtype).contiguous()
        self.experts = torch.cat([chosen, always], 1).contiguous()
        self.weights = torch.cat([probabilities, torch.ones(tokens, shape.shared)], 1).float().contiguous()

    def expected(self, gate_up, down, scale=1.0):
        """The first tokens' result, by the definition of a mixture of SwiGLU experts; weights are times scale."""
        rows = []
        for x, experts, weights in zip(self.x[:CHECKED], self.experts, self.weights):
            total = torch.zeros(down.shape[1])
            for expert, weight in zip(experts.tolist(), weights):
                gate, up = (scale * gate_up[expert].float() @ x.float()).chunk(2)
                total += weight * (scale * down[expert].float() @ (torch.nn.functional.silu(gate) * up))
            rows.append(total)
        return torch.stack(rows)

    def distinct(self):
        return len(self.experts.unique())


def batches(options):
    """Inputs for each number of tokens."""
    shape, dtype = options.shape, DTYPES[options.dtype]
    router = torch.randn(shape.experts, shape.hidden) * 0.02
    measure.skew_router(router, options.skew)
    return {
        tokens: [Batch(shape, tokens, dtype, router) for _ in range(measure.plan(tokens)[0])]
        for tokens in options.tokens
    }


def time_all(name, options, inputs, expected, run):
    """Times run(batch), which returns the result, and reports each number of tokens that comes out right."""
    spoiler = torch.ones(32 << 20)  # 128 MiB, more than the last-level cache
    for tokens, group in inputs.items():
        try:
            result = run(group[0])[:CHECKED].float()
            error = float((result - expected[tokens]).norm() / expected[tokens].norm())
            if not error < TOLERANCE[options.dtype]:
                measure.report_failure(name, tokens, f"its result is wrong here: relative error {error:.1e}")
                continue
            flush = spoiler.sum if measure.plan(tokens)[1] else None
            times = measure.seconds(lambda i: run(group[i]), len(group), options.repeats, flush)
        except RuntimeError as error:
            measure.report_failure(name, tokens, error)
            continue
        distinct = sum(batch.distinct() for batch in group) / len(group) - options.shape.shared
        measure.report(name, options, tokens, times, options.shape.touched_bytes(distinct, options.dtype))
