#!/usr/bin/env python3
"""KTransformers' kernels in bf16. Gated experts only; the routing is given."""

import glob
import importlib.metadata
import importlib.util
import os
import sys

import measure

options = measure.parse(measure.parser(__doc__))

import torch

import given_routing


def extension():
    """The build of the kernels for this processor, and its class for bf16."""
    if torch.cpu._is_avx512_bf16_supported():
        build, kernel = "avx512_bf16", "AMXBF16_MOE"
    else:
        build, kernel = "avx2", "AVX2BF16_MOE"
    found = glob.glob(os.path.join(measure.home(), "kt", "kt_kernel", f"_kt_kernel_ext_{build}.*.so"))
    if not found:
        sys.exit(f"kt-kernel has no build for {build}")
    spec = importlib.util.spec_from_file_location("kt_kernel_ext", found[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, kernel


def pool(module):
    settings = module.WorkerPoolConfig()
    settings.subpool_count = 1
    settings.subpool_numa_map = [0]
    settings.subpool_thread_count = [options.threads]
    return module.CPUInfer(settings)


def main():
    shape, dtype = options.shape, torch.bfloat16
    if not shape.gated or options.dtype != "bf16":
        sys.exit("these kernels have gated experts in bf16 only")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    module, kernel = extension()
    workers = pool(module)
    experts, choices = shape.experts + shape.shared, shape.top_k + shape.shared
    gate_up = given_routing.weights(shape, 2 * shape.intermediate, shape.hidden, dtype)
    gate, up = (half.contiguous() for half in gate_up.chunk(2, 1))
    down = given_routing.weights(shape, shape.hidden, shape.intermediate, dtype)

    config = module.moe.MOEConfig(experts, choices, shape.hidden, shape.intermediate, 0)
    config.max_len = max(options.tokens)
    config.gate_proj, config.up_proj, config.down_proj = gate.data_ptr(), up.data_ptr(), down.data_ptr()
    config.pool = workers.backend_
    layer = getattr(module.moe, kernel)(config)
    places = torch.arange(experts, dtype=torch.int64)
    workers.submit(layer.load_weights_task(places.data_ptr()))
    workers.sync()

    inputs = given_routing.batches(options)
    expected = {tokens: group[0].expected(gate_up, down) for tokens, group in inputs.items()}
    results = {tokens: torch.zeros(tokens, shape.hidden, dtype=dtype) for tokens in options.tokens}
    counts = {tokens: torch.tensor([tokens], dtype=torch.int32) for tokens in options.tokens}

    def run(batch):
        tokens = batch.x.shape[0]
        task = layer.forward_task(
            counts[tokens].data_ptr(),
            choices,
            batch.experts.data_ptr(),
            batch.weights.data_ptr(),
            batch.x.data_ptr(),
            results[tokens].data_ptr(),
            False,
        )
        workers.submit(task)
        workers.sync()
        return results[tokens]

    version = importlib.metadata.version("kt-kernel")
    given_routing.time_all(f"kt-kernel {version} {kernel}", options, inputs, expected, run)


with torch.inference_mode():
    main()
