"""Quantised bases on a CPU: torchao, HQQ, GPTQ and AWQ, each made here and loaded by its own library.

LoRAMoE only calls a base linear, so each is tested alike: gradients are those on a float base with the weights that the
quantised one stands for; training lowers the loss and leaves every bit of the base as it was; saved and reloaded, the
adapter gives the same logits.

A file of AWQ can be read on a CPU, but not made there, so it is packed here: rounded to the nearest, without AWQ's
scaling by activations, which the reader never sees. A stand-in with their buffers is tested in every environment.
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.helpers import layers_of
from tests.plain_loop import weights

MLP = ("gate_proj", "up_proj", "down_proj")
GROUP = 32
IDS = torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(0))
CALL = {"input_ids": IDS, "labels": IDS, "task_types": torch.tensor([0, 1, 0, 1])}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A float Llama whose widths are multiples of 64, on disk."""
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, pad_token_id=0, **size)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(quantised: Any) -> Any:
    torch.manual_seed(1)
    options = {"blc_weight": 0.1, "blc_alpha": 0.3, "lora_dropout": 0.0, "init_lora_weights": False}
    return get_peft_model(quantised, LoraMoeConfig(r=2, lora_nums=4, task_type="CAUSAL_LM", **options)).train()


def train(model: Any, steps: int = 20) -> list[float]:
    optimizer = torch.optim.AdamW(weights(model).values(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(**CALL).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def frozen_bytes(model: Any) -> dict[str, bytes]:
    """Every tensor of the base as it lies in memory, a quantised one part by part."""
    found: dict[str, bytes] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    named += [(f"{n}.W_q", m.W_q) for n, m in model.named_modules() if type(m).__name__ == "HQQLinear"]
    for name, tensor in named:
        if "loramoe_" not in name:
            inner = tensor.__tensor_flatten__()[0] if type(tensor.data) not in (Tensor, nn.Parameter) else [None]
            for part in inner:
                data = (tensor if part is None else getattr(tensor, part)).detach().cpu().contiguous()
                found[f"{name}/{part}"] = (
                    data.view(torch.uint8).numpy().tobytes() if data.dim() else repr(data).encode()
                )
    return found


def assert_it_works(load: Callable[[], Any], kind: str, tmp_path: Path, exact: bool = True) -> None:
    """Trains on the base that `load` loads, saves, and reloads; `exact`: gradients are those of the float base."""
    model = adapted(load())
    assert {type(layer.base_layer).__name__ for layer in layers_of(model).values()} == {kind}
    if exact:
        assert_gradients_of_the_float_base(model)
    before = frozen_bytes(model)
    losses = train(model)
    assert losses[-1] < losses[0] - 0.3
    assert frozen_bytes(model) == before
    model.save_pretrained(tmp_path / "adapter")
    assert all("loramoe_" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    # In the mode it was trained in: GPTQ's kernel for a CPU has another arithmetic where it is first called in eval.
    loaded = PeftModel.from_pretrained(load(), tmp_path / "adapter").train()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def assert_gradients_of_the_float_base(model: Any) -> None:
    """Against the same adapter on float linears, whose weights are read off by sending the identity through."""
    reference = copy.deepcopy(model)
    quantised = {name: child for name, child in reference.named_modules() if is_quantised(child)}
    assert len(quantised) >= len(layers_of(model))
    for name, child in quantised.items():
        parent, _, attribute = name.rpartition(".")
        setattr(reference.get_submodule(parent), attribute, dequantised(child))
    reference.load_state_dict(weights(model), strict=False)
    model(**CALL).loss.backward()
    reference(**CALL).loss.backward()
    expected = {name: p.grad for name, p in weights(reference).items()}
    assert expected.keys() == weights(model).keys()
    for name, p in weights(model).items():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=1e-5)
    model.zero_grad()


def is_quantised(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (
        hasattr(module, "qweight")
        or hasattr(module, "W_q")
        or (type(module) is nn.Linear and weight is not None and type(weight.data) is not Tensor)
    )


@torch.no_grad()
def dequantised(module: Any) -> nn.Linear:
    linear = nn.Linear(module.in_features, module.out_features, bias=False)
    eye = torch.eye(module.in_features).unsqueeze(0)
    linear.weight.copy_(copy.deepcopy(module).train()(eye)[0].T)
    return linear.requires_grad_(False)


# --- torchao ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "exact"),
    [
        ("Int8WeightOnlyConfig", {}, True),
        ("IntxWeightOnlyConfig", {"weight_dtype": torch.int4}, True),
        ("Int8DynamicActivationInt8WeightConfig", {}, False),  # it rounds the activations too
    ],
)
def test_torchao(name: str, options: dict[str, Any], exact: bool, base: Path, tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from transformers import TorchAoConfig

    config = TorchAoConfig(getattr(quantization, name)(**options))
    load = lambda: AutoModelForCausalLM.from_pretrained(base, quantization_config=config)  # noqa: E731
    assert_it_works(load, "Linear", tmp_path, exact)


# --- HQQ -------------------------------------------------------------------------------------------------------------


def test_hqq(base: Path, tmp_path: Path) -> None:
    quantize = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed")
    from hqq.models.hf.base import AutoHQQHFModel

    def load() -> Any:
        model = AutoModelForCausalLM.from_pretrained(base)
        config = quantize.BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
        AutoHQQHFModel.quantize_model(model, quant_config=config, compute_dtype=torch.float32, device="cpu")
        return model

    assert_it_works(load, "HQQLinear", tmp_path)


def test_transformers_own_flag_for_hqq_does_not_work_yet(base: Path) -> None:
    """When this fails, transformers has got there, and docs/tools.md has a line too many."""
    pytest.importorskip("hqq", reason="hqq is not installed")
    from transformers import HqqConfig

    with pytest.raises(NotImplementedError, match=r"QuantizationMethod\.HQQ is not available yet"):
        AutoModelForCausalLM.from_pretrained(base, quantization_config=HqqConfig(nbits=4, group_size=64))


# --- GPTQ ------------------------------------------------------------------------------------------------------------


def test_gptq(base: Path, tiny_task: Any, tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    pytest.importorskip("optimum", reason="optimum is not installed")
    from transformers import AutoTokenizer, GPTQConfig

    rows = json.loads((tiny_task.train_dir / "train.json").read_text())
    texts = [f"{row['instruction']} {row['output']}" for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    config = GPTQConfig(bits=4, group_size=GROUP, dataset=texts, tokenizer=tokenizer)
    folder = tmp_path / "gptq"
    AutoModelForCausalLM.from_pretrained(base, device_map="cpu", quantization_config=config).save_pretrained(folder)
    load = lambda: AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")  # noqa: E731
    assert_it_works(load, "TorchAtenLinear", tmp_path)


# --- AWQ -------------------------------------------------------------------------------------------------------------


def test_awq(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    write_awq(base, tmp_path / "awq")
    load = lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "awq", device_map="cpu")  # noqa: E731
    assert_it_works(load, "TorchAtenAwqLinear", tmp_path)


def test_a_first_call_in_evaluation_costs_the_gradient(base: Path, tmp_path: Path) -> None:
    """The kernel for a CPU of gptqmodel (GPTQ's is built alike) chooses for good: docs/tools.md says to train first."""
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    write_awq(base, tmp_path / "awq")
    x = torch.randn(2, 64)
    for evaluated_first in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "awq", device_map="cpu")
        linear = model.model.layers[0].mlp.up_proj
        if evaluated_first:
            linear.eval()(x)
        assert linear.train()(x.clone().requires_grad_()).requires_grad is not evaluated_first


def write_awq(base: Path, folder: Path) -> None:
    """A base as AWQ's files have it (version gemm): 8 codes of 4 bits in an int32, a zero and a scale a group."""
    tensors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            stem = name.removesuffix("weight")
            tensors |= {stem + part: value for part, value in awq_tensors(tensor).items()}
        else:
            tensors[name] = tensor
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    scheme = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": GROUP, "zero_point": True}
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": scheme}
    (folder / "config.json").write_text(json.dumps(config))


def awq_tensors(weight_FD: Tensor) -> dict[str, Tensor]:
    F, D = weight_FD.shape
    groups = weight_FD.T.reshape(D // GROUP, GROUP, F)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = ((high - low) / 15).half().float()
    zero = (-low / scale).round().clamp(0, 15)
    codes = (groups / scale + zero).round().clamp(0, 15).reshape(D, F)
    return {"qweight": packed(codes), "qzeros": packed(zero[:, 0]), "scales": scale[:, 0].half()}


def packed(codes: Tensor) -> Tensor:
    """8 columns of 4 bits in one of int32, in the order that AWQ's kernels unpack fastest."""
    lanes = codes.long().reshape(len(codes), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
    bits = (lanes << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(bits >= 2**31, bits - 2**32, bits).int()


# --- a stand-in ------------------------------------------------------------------------------------------------------


class QuantLinear(nn.Module):
    """GPTQ's interface without its library: no weight, packed buffers, and `in_features`, `out_features`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        for name, value in awq_tensors(linear.weight.detach()).items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        codes, zeros = unpacked(self.qweight), unpacked(self.qzeros)
        weight_DF = (codes - zeros.repeat_interleave(GROUP, 0)) * self.scales.float().repeat_interleave(GROUP, 0)
        return x @ weight_DF


def unpacked(packed_: Tensor) -> Tensor:
    lanes = (packed_.long().unsqueeze(-1) >> torch.arange(0, 32, 4)) & 15
    return lanes[..., [0, 4, 1, 5, 2, 6, 3, 7]].flatten(1)


def test_a_stand_in_without_a_weight(base: Path, tmp_path: Path) -> None:
    """In every environment: a linear that is nothing but packed integers."""

    def load() -> Any:
        model = AutoModelForCausalLM.from_pretrained(base)
        for layer in model.model.layers:
            for name in MLP:
                setattr(layer.mlp, name, QuantLinear(getattr(layer.mlp, name)))
        return model

    stand_in = QuantLinear(linear := nn.Linear(64, 32, bias=False))
    error = (dequantised(stand_in).weight - linear.weight).abs().max()
    assert error <= stand_in.scales.max(), "packed and unpacked, a weight moves by a step at most"
    assert_it_works(load, "QuantLinear", tmp_path)
