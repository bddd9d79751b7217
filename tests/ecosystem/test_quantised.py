"""Base models quantised by torchao, HQQ and GPTQ on a CPU, each made and loaded by its own library.

LoRAMoE only calls a base layer. So gradients are those on a float base model with the weights that the quantised one
stands for, training leaves every bit of it, and the saved adapter gives the same logits.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraMoeConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.helpers import layers_of
from tests.plain_loop import weights

IDS = torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "labels": IDS, "task_types": torch.tensor([0, 1, 0, 1])}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A float Llama whose widths are multiples of 64."""
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, pad_token_id=0, **size)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def assert_trains(load: Callable[[], Any], kind: str, tmp_path: Path) -> None:
    """Compares gradients with those on the float base model, trains, and loads the adapter again."""
    torch.manual_seed(1)
    options = {"blc_weight": 0.1, "blc_alpha": 0.3, "lora_dropout": 0.0, "init_lora_weights": False}
    model = get_peft_model(load(), LoraMoeConfig(r=2, lora_nums=4, task_type="CAUSAL_LM", **options)).train()
    layers = layers_of(model).values()
    assert {type(layer.base_layer).__name__ for layer in layers} == {kind}
    before = [float_weight(layer.base_layer) for layer in layers]
    reference = copy.deepcopy(model)
    for name, module in list(reference.named_modules()):
        if type(module).__name__ == kind and hasattr(module, "in_features"):
            linear = nn.Linear(module.in_features, module.out_features, bias=False)
            linear.weight = nn.Parameter(float_weight(module), requires_grad=False)
            reference.set_submodule(name, linear)
    losses = [both.loss for both in (model(**BATCH), reference(**BATCH))]
    for loss in losses:
        loss.backward()
    for name, p in weights(reference).items():
        if "loramoe_" in name:
            torch.testing.assert_close(model.get_parameter(name).grad, p.grad, rtol=1e-3, atol=1e-5)
    optimizer = torch.optim.AdamW(weights(model).values(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**BATCH).loss
        loss.backward()
        optimizer.step()
    assert loss < losses[0] - 0.3
    assert all(torch.equal(float_weight(layer.base_layer), old) for layer, old in zip(layers, before, strict=True))
    model.save_pretrained(tmp_path / "adapter")
    # In training mode: GPTQ's kernel for a CPU chooses another arithmetic where it is first called in evaluation.
    loaded = PeftModel.from_pretrained(load(), tmp_path / "adapter").train()
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


@torch.no_grad()
def float_weight(module: Any) -> Tensor:
    """The weight that a quantised layer stands for."""
    return copy.deepcopy(module).train()(torch.eye(module.in_features)[None])[0].T


@pytest.mark.parametrize("bits", [4, 8])
def test_torchao(bits: int, base: Path, tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from transformers import TorchAoConfig

    four = bits == 4
    kind = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4) if four else quantization.Int8WeightOnlyConfig()
    config = TorchAoConfig(kind)
    assert_trains(lambda: AutoModelForCausalLM.from_pretrained(base, quantization_config=config), "Linear", tmp_path)


def test_hqq(base: Path, tmp_path: Path) -> None:
    quantize = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed")
    from hqq.models.hf.base import AutoHQQHFModel

    def load() -> Any:
        model = AutoModelForCausalLM.from_pretrained(base)
        config = quantize.BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
        AutoHQQHFModel.quantize_model(model, quant_config=config, compute_dtype=torch.float32, device="cpu")
        return model

    assert_trains(load, "HQQLinear", tmp_path)


def test_gptq(base: Path, tiny_task: Any, tmp_path: Path) -> None:
    for package in ("gptqmodel", "optimum"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    from transformers import GPTQConfig

    samples = json.loads((tiny_task.train_dir / "train.json").read_text())
    texts = [f"{sample['instruction']} {sample['output']}" for sample in samples]
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    config = GPTQConfig(bits=4, group_size=32, dataset=texts, tokenizer=tokenizer)
    folder = tmp_path / "gptq"
    AutoModelForCausalLM.from_pretrained(base, device_map="cpu", quantization_config=config).save_pretrained(folder)
    assert_trains(lambda: AutoModelForCausalLM.from_pretrained(folder, device_map="cpu"), "TorchAtenLinear", tmp_path)


class PackedLinear(nn.Module):
    """A layer that is nothing but integers of 4 bits and a scale, as those of GPTQ and AWQ: it has no weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("scale", linear.weight.detach().abs().max() / 7)
        self.register_buffer("qweight", (linear.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.qweight * self.scale).T


def test_a_layer_without_a_weight(base: Path, tmp_path: Path) -> None:
    """In every environment."""

    def load() -> Any:
        model = AutoModelForCausalLM.from_pretrained(base)
        for layer in model.model.layers:
            for name in ("gate_proj", "up_proj", "down_proj"):
                setattr(layer.mlp, name, PackedLinear(getattr(layer.mlp, name)))
        return model

    assert_trains(load, "PackedLinear", tmp_path)
