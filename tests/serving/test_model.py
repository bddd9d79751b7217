"""The adapted layer, alone and on two ranks, and how transformers and vLLM find the classes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from transformers import AutoModel

from loramoe.ops import mixture_reference, route
from loramoe.serving import CLASS_PREFIX, FAMILIES, model, register

SIZE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
EXPERTS = {"lora_nums": 2, "layers": {"layers.0.mlp.up_proj": {"r": 2, "scaling": 4.0}}}


class WithBias(nn.Linear):
    """Returns a tuple, as linear layers of vLLM may do."""

    def forward(self, x):
        return super().forward(x), None


def test_layer():
    torch.manual_seed(0)
    base = WithBias(5, 7)
    layer = model.LoraMoeLinear(base, lora_nums=3, r=2, scaling=4.0)
    x = torch.randn(2, 9, 5)
    y = F.linear(x, base.weight, base.bias)
    assert torch.equal(layer(x), y)  # until weights are loaded
    for weight in (layer.router, layer.A, layer.B):
        weight.data.normal_()
    expected = y + mixture_reference(x, route(x, layer.router), layer.A, layer.B, 4.0)
    torch.testing.assert_close(layer(x), expected)


class Rank:
    """Sums tensors over the ranks by a gloo group; each rank is a thread."""

    def __init__(self, rank, store):
        self.rank = rank
        self.group = distributed.ProcessGroupGloo(store, rank, 2, timedelta(seconds=30))

    def sum(self, tensor):
        tensor = tensor.clone()
        self.group.allreduce([tensor]).wait()
        return tensor


class ParallelLinear(nn.Linear):
    """One rank's part of a linear layer, as vLLM has it."""

    def __init__(self, whole, rank, dim):
        super().__init__(1, 1, bias=False, dtype=whole.weight.dtype)
        self.weight = nn.Parameter(whole.weight.chunk(2, dim)[rank.rank])
        self.tp_rank, self.dim, self.rank = rank.rank, dim, rank

    def forward(self, x):
        y = super().forward(x)
        return y if self.dim == 0 else self.rank.sum(y)


@torch.no_grad()
def test_tensor_parallelism_on_two_ranks(monkeypatch):
    torch.manual_seed(0)
    x, mlp = torch.randn(2, 9, 6, dtype=torch.float64), nn.ModuleDict()
    for name, (d, f) in {"gate": (6, 10), "up": (6, 10), "down": (10, 6)}.items():
        mlp[name] = model.LoraMoeLinear(nn.Linear(d, f, bias=False), lora_nums=3, r=2, scaling=4.0)
        for weight in mlp[name].double().parameters():
            weight.normal_()

    def forward(mlp):
        return mlp["down"](F.silu(mlp["gate"](x)) * mlp["up"](x))

    def sum_over_ranks(tensor):
        return local.rank.sum(tensor)

    local, store = threading.local(), distributed.HashStore()
    vllm = ModuleType("vllm.distributed")
    vllm.tensor_model_parallel_all_reduce = sum_over_ranks
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.distributed", vllm)

    @torch.no_grad()
    def run(index):
        local.rank, part = Rank(index, store), copy.deepcopy(mlp)
        for name, layer in part.items():
            layer.base_layer = ParallelLinear(layer.base_layer, local.rank, dim=int(name == "down"))
        return forward(part)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, forward(mlp))


def test_classes_are_unpickled_by_name():
    for name in (name for names in FAMILIES.values() for name in names):
        made = getattr(model, CLASS_PREFIX + name)
        assert pickle.loads(pickle.dumps(made)) is made
    assert pickle.loads(pickle.dumps(model.LoraMoeLlamaConfig(**SIZE, loramoe=EXPERTS))).loramoe == EXPERTS


def test_what_vllm_asks_for():
    """A decoder on the meta device, by its configuration; the names of its weights are those of the file."""
    register()
    with torch.device("meta"):
        made = AutoModel.from_config(model.LoraMoeLlamaConfig(**SIZE, loramoe=EXPERTS), dtype=torch.bfloat16)
    assert type(made) is model.LoraMoeLlamaModel
    weights = dict(made.layers[0].mlp.up_proj.named_parameters())
    assert set(weights) == {*made._keep_in_fp32_modules_strict, "base_layer.weight"}
    assert {name: weight.dtype for name, weight in weights.items()} == {
        **dict.fromkeys(model.WEIGHTS, torch.float32),
        "base_layer.weight": torch.bfloat16,
    }
    assert weights["router"].is_meta


def test_entry_points_are_register():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for group in ("vllm.general_plugins", "sglang.srt.plugins"):
        assert EntryPoint("loramoe", project["entry-points"][group]["loramoe"], group).load() is register


# Gemma 3's configuration imports AutoConfig while it is being imported itself.
@pytest.mark.slow
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
