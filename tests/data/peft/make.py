#!/usr/bin/env python3
"""Writes the adapters of this folder by Hugging Face PEFT, and what they do to a small model: expected.safetensors.

    pip install peft==0.21.2 transformers==5.23 && python make.py

With folders as arguments it instead loads adapters into the same model and prints the largest difference between
each one's updates and expected.safetensors: how files that moe::PeftWriter wrote are checked by PEFT.
"""

import pathlib
import shutil
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

HERE = pathlib.Path(__file__).parent


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(6, 5, bias=False)
        self.down = nn.Linear(5, 4, bias=False)


class Experts(nn.Module):
    """Fused expert weights as transformers keeps them: (experts, out, in)."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 6))
        self.down_proj = nn.Parameter(torch.randn(3, 6, 4))

    def forward(self, x):
        result = []
        for gate_up, down in zip(self.gate_up_proj, self.down_proj):
            gate, up = (x @ gate_up.T).chunk(2, -1)
            result.append((nn.functional.silu(gate) * up) @ down.T)
        return torch.stack(result)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.experts = Experts()


ADAPTERS = {
    "attention": dict(r=2, lora_alpha=6, target_modules=["q_proj", "down"], rank_pattern={"down": 3},
                      alpha_pattern={"layers.1.q_proj": 5}),
    "other": dict(r=4, lora_alpha=3.5, target_modules=["layers.0.q_proj"], use_rslora=True),
    "experts": dict(r=2, lora_alpha=3, target_modules=[],
                    target_parameters=["experts.gate_up_proj", "experts.down_proj"],
                    alpha_pattern={"experts.down_proj": 7}),
    "mixtral": dict(r=2, lora_alpha=4, target_modules=[],
                    target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
}


def model(name):
    torch.manual_seed(0)
    if name != "mixtral":
        return Model()
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(
        hidden_size=8, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=2, vocab_size=4, initializer_range=0.5))


def updates(adapted, name="default"):
    """The dense update of each module or parameter."""
    result = {}
    for module_name, module in adapted.base_model.model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        if hasattr(module, "parameter_name"):
            module_name = module_name.replace(".base_layer", "") + "." + module.parameter_name
        result[module_name] = module.get_delta_weight(name).detach().contiguous()
    return result


def make():
    expected = {}
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
    for name, options in ADAPTERS.items():
        base = model(name)
        torch.manual_seed(len(name))
        adapted = peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False, **options))
        adapted.save_pretrained(HERE / name)
        (HERE / name / "README.md").unlink()
        expected |= {f"{name}.{module}": update for module, update in updates(adapted).items()}
        inner = adapted.base_model.model
        if name == "attention":
            expected["attention.y"] = inner.layers[0].q_proj(x).detach()
        if name == "experts":
            expected["experts.y"] = inner.experts(x).detach()
        if name == "mixtral":
            block = inner.model.layers[0].mlp
            tokens = torch.randn(1, 7, 8)
            expected |= {"mixtral.x": tokens[0], "mixtral.y": block(tokens)[0].detach()}
    base, block = model("experts"), model("mixtral").model.layers[0].mlp
    expected |= {"x": x, "base.layers.0.q_proj": base.layers[0].q_proj.weight,
                 "base.experts.gate_up_proj": base.experts.gate_up_proj,
                 "base.experts.down_proj": base.experts.down_proj, "base.mixtral.gate": block.gate.weight,
                 "base.mixtral.gate_up_proj": block.experts.gate_up_proj,
                 "base.mixtral.down_proj": block.experts.down_proj}
    save_file({name: tensor.detach().clone() for name, tensor in expected.items()}, HERE / "expected.safetensors")


def check(folder):
    expected = load_file(HERE / "expected.safetensors")
    name = pathlib.Path(folder).name
    adapted = peft.PeftModel.from_pretrained(model(name), folder)
    for module, update in updates(adapted).items():
        error = (update - expected[f"{name}.{module}"]).abs().max().item()
        print(f"{folder}: {module}: {tuple(update.shape)}, largest difference {error:.2e}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for folder in sys.argv[1:]:
            check(folder)
    else:
        for name in ADAPTERS:
            shutil.rmtree(HERE / name, ignore_errors=True)
        make()
