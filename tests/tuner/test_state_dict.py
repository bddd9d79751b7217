"""Adapters of every format by the names of today, and the check of all their tensors before a weight is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    LoraMoeConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from loramoe.export.original import read_adapter
from loramoe.tuner.state_dict import CheckpointError, current_names, validate_state_dict
from tests.conftest import ORIGINAL
from tests.helpers import edit, later_transformers

Maker = Callable[..., Any]
SAFE = "adapter_model.safetensors"
UP = "base_model.model.model.layers.1.mlp.up_proj"
PREFIX = "base_model.model."


def test_experts_of_the_original_code_are_stacked() -> None:
    original = read_adapter(ORIGINAL)[1]
    renamed = current_names(original)
    assert len(renamed) == len(original) // 13 * 3  # a router, six A and six B
    for i in range(6):
        assert torch.equal(renamed[f"{UP}.loramoe_experts.A"][4 * i : 4 * i + 4], original[f"{UP}.lora_A{i}.weight"])
        assert torch.equal(renamed[f"{UP}.loramoe_experts.B"][:, 4 * i : 4 * i + 4], original[f"{UP}.lora_B{i}.weight"])
    assert torch.equal(renamed[f"{UP}.loramoe_experts.router"], original[f"{UP}.lora_route.weight"])


@pytest.mark.parametrize("lost", ["lora_A2", "lora_B5", "lora_route"])
def test_a_file_of_the_original_code_that_lacks_a_part(lost: str) -> None:
    weights = read_adapter(ORIGINAL)[1]
    del weights[f"{UP}.{lost}.weight"]
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.up_proj.lora_.*Copy or download it again"):
        current_names(weights)


def as_0_1(folder: Path, **config: Any) -> dict[str, Tensor]:
    """Rewrite a saved adapter as LoRAMoE 0.1 wrote it; the weights that are in the file then."""
    tensors = {}
    for name, tensor in load_file(folder / SAFE).items():
        layer, _, part = name.partition(".loramoe_experts.")
        tensors[f"{layer}.loramoe_{part}.weight" if part else name] = tensor
    save_file(tensors, folder / SAFE, metadata={"format": "pt"})
    file = folder / "adapter_config.json"
    fields = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("blc_importance", "bias")}
    file.write_text(json.dumps(fields | config))
    return tensors


@pytest.mark.parametrize(("blc_target", "by_transformers"), [("paper", False), ("match", True)])
def test_an_adapter_of_version_0_1(
    blc_target: str, by_transformers: bool, adapted: Maker, tiny_llama: Maker, saved: Path, ids: Tensor
) -> None:
    old = as_0_1(saved, blc_target=blc_target)
    assert f"{UP}.loramoe_A.weight" in old
    model = tiny_llama()
    if by_transformers:
        model.load_adapter(str(saved))
    else:
        model = PeftModel.from_pretrained(model, saved)
    assert torch.equal(model(ids).logits, adapted()(ids).logits)
    own = get_peft_model_state_dict(model)
    renamed = {name if not by_transformers else name.removeprefix(PREFIX): t for name, t in current_names(old).items()}
    assert own.keys() == renamed.keys()
    assert all(torch.equal(own[name], renamed[name]) for name in own)
    assert (model.peft_config["default"].blc_target, model.peft_config["default"].blc_importance) == (blc_target, "sum")


def llama(**size: int) -> Any:
    """A Llama as `tiny_llama` makes it, of another size."""
    torch.manual_seed(0)
    own = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64, **size}
    return LlamaForCausalLM(LlamaConfig(**own, num_attention_heads=2, num_key_value_heads=2)).eval()


def misfit(
    folder: Path, edits: Any = None, tensors: Any = None, head: bool = False, whole: bool = False, **base: int
) -> Path:
    """Save an adapter of another base model, with a changed configuration, or other tensors (None: taken out)."""
    config = LoraMoeConfig(lora_nums=3, r=2, modules_to_save=["lm_head"] if head else None)
    get_peft_model(llama(**base), config).save_pretrained(folder, save_embedding_layers=whole)
    edit(folder, **(edits or {}))
    given = load_file(folder / SAFE) | {PREFIX + name: tensor for name, tensor in (tensors or {}).items()}
    save_file({n: t for n, t in given.items() if t is not None}, folder / SAFE, metadata={"format": "pt"})
    return folder


B = "model.layers.1.mlp.up_proj.loramoe_experts.B"
VOCABULARY = r"has the shape \[70, 32\] in the adapter, and \[64, 32\] in this model"
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "other rank": ({"edits": {"r": 4}}, r"loramoe_experts.A has the shape \[6, 48\] .* \[12, 48\]"),
    "fewer layers": ({"num_hidden_layers": 1}, r"holds no model.layers.1.mlp.\w+.* and 8 more"),
    "more layers": ({"num_hidden_layers": 3}, r"holds model.layers.2.mlp.\w+.* and 8 more"),
    "missing part": ({"tensors": {B: None}}, f"holds no {B}, which this model needs"),
    "unknown name": ({"tensors": {"a.foo": torch.ones(1)}}, "holds a.foo, which this model does not have"),
    "other vocabulary": ({"vocab_size": 70, "whole": True}, VOCABULARY),
    "missing head": ({"head": True, "tensors": {"lm_head.weight": None}}, "holds no lm_head.weight, which this model"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_file_that_does_not_fit_changes_no_weight(kind: str, tmp_path: Path) -> None:
    options, message = MISFITS[kind]
    misfit(tmp_path, **options)
    model = get_peft_model(llama(), LoraMoeConfig.from_pretrained(tmp_path))
    model.peft_config["default"].base_model_name_or_path = "some/base"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        set_peft_model_state_dict(model, load_file(tmp_path / SAFE))
    assert "some/base" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def from_pretrained(base: Any, folder: Path, **options: Any) -> Any:
    return PeftModel.from_pretrained(base, folder, **options)


def low_memory(base: Any, folder: Path, **options: Any) -> Any:
    return PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True, **options)


def by_transformers(base: Any, folder: Path, **options: Any) -> Any:
    base.load_adapter(str(folder), **options)
    return base


def as_second(base: Any, folder: Path, **options: Any) -> Any:
    model = get_peft_model(base, LoraMoeConfig(lora_nums=2))
    model.load_adapter(folder, "second", **options)
    return model


@pytest.mark.parametrize("kind", ["other rank", "missing part"])
@pytest.mark.parametrize("load", [from_pretrained, low_memory, by_transformers, as_second])
def test_every_entry_point_checks(load: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    options, message = MISFITS[kind]
    base = llama()
    before = dict(base.named_parameters())
    copies = {name: parameter.clone() for name, parameter in before.items()}
    with pytest.raises(CheckpointError, match=message):
        load(base, misfit(tmp_path, **options))
    assert all(torch.equal(before[name], copies[name]) for name in before)


@pytest.mark.parametrize("load", [from_pretrained, pytest.param(by_transformers, marks=later_transformers)])
def test_ignore_mismatched_sizes(load: Callable[..., Any], tmp_path: Path) -> None:
    misfit(tmp_path, edits={"r": 4})
    model = load(llama(), tmp_path, ignore_mismatched_sizes=True)
    own = {name.removeprefix(PREFIX): t for name, t in get_peft_model_state_dict(model).items()}
    saved = {name.removeprefix(PREFIX): t for name, t in load_file(tmp_path / SAFE).items()}
    router = UP.removeprefix(PREFIX) + ".loramoe_experts.router"
    assert torch.equal(own[router], saved[router])
    assert own[router.replace("router", "A")].shape == (12, 32)


def test_weights_are_the_callers_and_need_no_prefix(adapted: Maker) -> None:
    source, target = adapted(), adapted(init_lora_weights=False)
    given = {name.removeprefix(PREFIX): tensor for name, tensor in get_peft_model_state_dict(source).items()}
    assert current_names(given) == given
    validate_state_dict(target, given, "default")


def test_weights_of_other_methods_pass_unchecked(tiny_llama: Maker) -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["up_proj"]))
    assert set_peft_model_state_dict(model, {}).missing_keys
