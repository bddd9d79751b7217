"""The adapted layer, and how transformers and vLLM find the classes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel

from loramoe.ops import mixture_reference, route
from loramoe.serving import CLASS_PREFIX, FAMILIES, model, register

SIZE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
EXPERTS = {"lora_nums": 2, "layers": {"layers.0.mlp.up_proj": {"r": 2, "scaling": 4.0}}}


class WithBias(nn.Linear):
    """Returns a tuple, as linear layers of vLLM do."""

    def forward(self, x):
        return super().forward(x), None


@pytest.mark.parametrize("kind", [nn.Linear, WithBias])
def test_the_layer(kind):
    torch.manual_seed(0)
    base = kind(5, 7)
    layer = model.LoraMoeLinear(base, lora_nums=3, r=2, scaling=4.0)
    x = torch.randn(2, 9, 5)
    y = nn.functional.linear(x, base.weight, base.bias)
    assert torch.equal(layer(x), y)  # until weights are loaded
    for weight in (layer.router, layer.A, layer.B):
        weight.data.normal_()
    expected = y + mixture_reference(x, route(x, layer.router), layer.A, layer.B, 4.0)
    torch.testing.assert_close(layer(x), expected)


def test_router_and_experts_are_float32_whatever_the_base_model():
    layer = model.LoraMoeLinear(nn.Linear(5, 7, dtype=torch.bfloat16), lora_nums=3, r=2, scaling=4.0)
    layer.A = nn.Parameter(layer.A.bfloat16())  # so does vLLM
    assert {layer.router.dtype, layer.A.dtype, layer.B.dtype} == {torch.float32}
    assert layer(torch.ones(1, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_are_unpickled_by_name(family):
    for name in FAMILIES[family]:
        made = getattr(model, CLASS_PREFIX + name)
        assert pickle.loads(pickle.dumps(made)) is made
    config = getattr(model, CLASS_PREFIX + FAMILIES[family][0])(**SIZE, loramoe=EXPERTS)
    assert pickle.loads(pickle.dumps(config)).loramoe == EXPERTS


def test_what_vllm_asks_for():
    """A base model on the meta device, by its configuration; the names of its weights are those of the file."""
    register()
    with torch.device("meta"):
        made = AutoModel.from_config(model.LoraMoeLlamaConfig(**SIZE, loramoe=EXPERTS), dtype=torch.bfloat16)
    assert type(made) is model.LoraMoeLlamaModel
    weights = dict(made.layers[0].mlp.up_proj.named_parameters())
    assert set(weights) == {"router", "A", "B", "base_layer.weight"}
    assert weights["router"].dtype == torch.float32
    assert weights["router"].is_meta


def test_the_plug_in_of_vllm_is_register():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    group = "vllm.general_plugins"
    assert EntryPoint("loramoe", project["entry-points"][group]["loramoe"], group).load() is register


# Gemma 3's configuration imports AutoConfig while it is being imported itself.
@pytest.mark.parametrize("first", ["AutoConfig", "Gemma3TextConfig", "LlamaForCausalLM"])
def test_import_loramoe_is_enough_and_light(first):
    code = f"""
import sys, loramoe
assert not {{"torch", "transformers", "loramoe.serving"}} & set(sys.modules)
from transformers import {first}, AutoConfig, AutoModelForCausalLM
config = AutoConfig.for_model("loramoe_llama", **{SIZE}, loramoe={EXPERTS})
assert "peft" not in sys.modules
print(type(AutoModelForCausalLM.from_config(config)).__name__)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "LoraMoeLlamaForCausalLM", run.stderr
