#!/usr/bin/env python3
"""ONNX Runtime's operations for mixtures, in f32 and with weights of 8 bits. They route by themselves, from logits."""

import os
import sys
import tempfile

import measure

options = measure.parse(measure.parser(__doc__))

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

CHECKED = 4  # tokens whose result is compared with a plain computation
TOLERANCE = {"f32": 1e-3, "int8": 5e-2}
generator = np.random.default_rng(0)


def weights(*shape):
    block = (generator.standard_normal(1 << 20) * 0.02).astype(np.float32)
    return np.resize(block, shape)


def quantised(weight):
    """Bytes around 128 and a scale an output channel."""
    scale = np.abs(weight).max(-1) / 127
    return (np.rint(weight / scale[..., None]) + 128).astype(np.uint8), scale.astype(np.float32)


def model(shape, experts, choices, weights):
    """One node. Swish-gated experts have their gate and up rows interleaved."""
    tensor = helper.make_tensor_value_info
    activation = {"activation_type": "relu"}
    if shape.gated:
        activation = {
            "activation_type": "swiglu",
            "swiglu_fusion": 1,
            "activation_alpha": 1.0,
            "activation_beta": 0.0,
        }
    if options.dtype == "int8":
        operation, inputs, activation["expert_weight_bits"] = "QMoE", ["up", "up_scale", "", "down", "down_scale"], 8
    else:
        operation, inputs = "MoE", ["up", "", "down"]
    node = helper.make_node(
        operation,
        ["x", "logits", *inputs],
        ["y"],
        domain="com.microsoft",
        k=choices,
        normalize_routing_weights=1,
        **activation,
    )
    graph = helper.make_graph(
        [node],
        "mixture",
        [
            tensor("x", TensorProto.FLOAT, ["tokens", shape.hidden]),
            tensor("logits", TensorProto.FLOAT, ["tokens", experts]),
        ],
        [tensor("y", TensorProto.FLOAT, ["tokens", shape.hidden])],
        [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def session(built):
    """Weights lie beside the model, which may hold no more than 2 GB."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "mixture.onnx")
        onnx.save(built, path, save_as_external_data=True, location="weights.bin")
        return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def expected(shape, x, logits, choices, up, down):
    rows = []
    for row, scores in zip(x[:CHECKED], logits):
        chosen = np.argsort(-scores)[:choices]
        shares = np.exp(scores[chosen] - scores[chosen].max())
        shares /= shares.sum()
        total = np.zeros(shape.hidden)
        for share, expert in zip(shares, chosen):
            hidden = up[expert] @ row
            if shape.gated:
                gate, linear = hidden[0::2], hidden[1::2]
                hidden = gate / (1 + np.exp(-gate)) * linear
            else:
                hidden = np.maximum(hidden, 0)
            total += share * (down[expert] @ hidden)
        rows.append(total)
    return np.stack(rows)


def draw(shape, tokens, router):
    """Tokens and logits; the shared experts' logits make every token choose them."""
    x = generator.standard_normal((tokens, shape.hidden)).astype(np.float32)
    x[:, 0] = 1  # the router's first column is a bias
    logits = x @ router.T
    always = np.full((tokens, shape.shared), logits.max() + 1, np.float32)
    return x, np.concatenate([logits, always], 1)


def main():
    shape = options.shape
    experts, choices = shape.experts + shape.shared, shape.top_k + shape.shared
    if options.dtype not in ("f32", "int8"):
        sys.exit("these operations are in f32 and 8 bits only on processors")
    name = f"ONNX Runtime {onnxruntime.__version__} {'MoE' if options.dtype == 'f32' else 'QMoE'}"
    up = weights(experts, shape.intermediate * (2 if shape.gated else 1), shape.hidden)
    down = weights(experts, shape.hidden, shape.intermediate)
    router = (generator.standard_normal((shape.experts, shape.hidden)) * 0.02).astype(np.float32)
    measure.skew_router(router, options.skew)
    stored = {"up": up, "down": down}
    if options.dtype == "int8":
        (stored["up"], stored["up_scale"]), (stored["down"], stored["down_scale"]) = quantised(up), quantised(down)
    layer = session(model(shape, experts, choices, stored))
    spoiler = np.ones(32 << 20, np.float32)  # 128 MiB, more than the last-level cache
    for tokens in options.tokens:
        count, cold = measure.plan(tokens)
        inputs = [draw(shape, tokens, router) for _ in range(count)]

        def run(i):
            return layer.run(None, {"x": inputs[i][0], "logits": inputs[i][1]})[0]

        wanted = expected(shape, *inputs[0], choices, up, down)
        error = np.linalg.norm(run(0)[:CHECKED] - wanted) / np.linalg.norm(wanted)
        if not error < TOLERANCE[options.dtype]:
            measure.report_failure(name, tokens, f"its result is wrong here: relative error {error:.1e}")
            continue
        times = measure.seconds(run, count, options.repeats, spoiler.sum if cold else None)
        chosen = [np.unique(np.argsort(-logits, 1)[:, :choices]) for _, logits in inputs]
        distinct = sum(map(len, chosen)) / count - shape.shared
        measure.report(name, options, tokens, times, shape.touched_bytes(distinct, options.dtype))


main()
