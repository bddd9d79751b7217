"""An adapter that does not fit a model says which linear, what was seen and expected, and what to do; at every door."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraMoeConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from loramoe.adapter_files import CONFIG, SAFE, CheckpointError
from loramoe.fit import Linear, check_fit, check_weights
from tests.helpers import edit

UP = "model.layers.1.mlp.up_proj"
LINEAR = Linear(D=4, F=6, R=2)
CONFIGURATION = LoraMoeConfig(lora_nums=3, r=2, base_model_name_or_path="the/base")


def weights(linear: str = UP, experts: int = 3, rank: int = 2, D: int = 4, F: int = 6) -> dict[str, Tensor]:
    shapes = {"router": (experts, D), "A": (experts * rank, D), "B": (F, experts * rank)}
    return {f"base_model.model.{linear}.loramoe_{part}.weight": torch.zeros(shape) for part, shape in shapes.items()}


def without(part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights().items() if f"loramoe_{part}" not in name}


# --- the check itself -------------------------------------------------------------------------------------------------


def test_what_fits() -> None:
    check_fit(CONFIGURATION, weights() | {"of.another": torch.ones(1)}, {UP: LINEAR})
    check_weights(CONFIGURATION, weights() | {"of.another": torch.ones(1)})
    not_numbers = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights().items()}
    check_fit(CONFIGURATION, not_numbers, {UP: LINEAR})


def test_names_need_no_prefix() -> None:
    injected = {name.removeprefix("base_model.model."): tensor for name, tensor in weights().items()}
    check_fit(CONFIGURATION, injected, {UP: LINEAR})


def test_a_rank_of_its_own() -> None:
    config = LoraMoeConfig(lora_nums=3, r=8, rank_pattern={"up_proj": 2})
    check_weights(config, weights())
    with pytest.raises(CheckpointError, match=r"says r=8 for .*down_proj, but its A has 6 rows for 3 experts"):
        check_weights(config, weights("model.layers.1.mlp.down_proj"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (weights(D=8), rf"{UP}: the adapter was trained on base model 'the/base' with 8 in-features and 6 out-.*has 4"),
        (weights(F=8), r"with 4 in-features and 8 out-features; this model has 4 and 6. Load it onto the base model"),
        (weights(experts=6), f"{CONFIG} says lora_nums=3, but the weights of {UP} hold 6 experts.*the same save"),
        (weights(experts=2, rank=3), f"says lora_nums=3, but the weights of {UP} hold 2 experts"),
        (weights(rank=4), rf"{CONFIG} says r=2 for {UP}, but its A has 12 rows for 3 experts, not 3 × 2"),
        (without("router"), f"{UP} should have a router, A and B, but .* lack its loramoe_router: .* not whole"),
        (without("A"), f"{UP} should have .* lack its loramoe_A"),
        (without("B"), f"{UP} should have .* lack its loramoe_B"),
        ({}, f"holds no weights for {UP} of this model. It was trained on base model 'the/base', which may be another"),
        (weights("model.layers.7.mlp.up_proj"), f"holds no weights for {UP} of this model"),
        (
            weights() | weights("lm_head") | weights("x"),
            "holds weights for lm_head and 1 more linears, which this model does not have, or which target_modules",
        ),
        (weights() | {f"{UP}.loramoe_A.weight": torch.ones(3)}, r"has a router \[3, 4\], A \[3\] and B \[6, 6\]"),
        (weights() | {f"{UP}.loramoe_A.weight": torch.ones(6, 5)}, r"A \[6, 5\] .*the file is damaged"),
    ],
)
def test_what_does_not_fit(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_fit(CONFIGURATION, given, {UP: LINEAR})


def test_weights_without_any_experts() -> None:
    with pytest.raises(CheckpointError, match="hold no LoRAMoE"):
        check_weights(CONFIGURATION, {"x": torch.ones(1)})


def test_weights_of_modules_to_save() -> None:
    config = LoraMoeConfig(lora_nums=3, r=2, modules_to_save=["lm_head"])
    with pytest.raises(CheckpointError, match=r"modules_to_save=\['lm_head'\], but .* holds no weights for lm_head.w"):
        check_fit(config, weights(), {UP: LINEAR}, {"lm_head.weight": (5, 4)})
    given = weights() | {"lm_head.weight": torch.ones(7, 4)}
    with pytest.raises(CheckpointError, match=r"lm_head.weight: .* a base model, where it has the shape \[7, 4\]; in"):
        check_fit(config, given, {UP: LINEAR}, {"lm_head.weight": (5, 4)})
    check_fit(config, given, {UP: LINEAR}, {"lm_head.weight": ()})  # in parts under ZeRO-3


# --- every door -------------------------------------------------------------------------------------------------------


def from_pretrained(base: Any, folder: Path) -> Any:
    return PeftModel.from_pretrained(base, folder)


def low_memory(base: Any, folder: Path) -> Any:
    return PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True)


def by_transformers(base: Any, folder: Path) -> Any:
    base.load_adapter(str(folder))
    return base


def by_state_dict(base: Any, folder: Path) -> Any:
    config = {k: v for k, v in json.loads((folder / CONFIG).read_text()).items() if k in ("r", "lora_nums")}
    model = get_peft_model(base, LoraMoeConfig(**config, base_model_name_or_path=str(folder.parent / "base")))
    set_peft_model_state_dict(model, load_file(folder / SAFE))
    return model


def as_second(base: Any, folder: Path) -> Any:
    model = get_peft_model(base, LoraMoeConfig(lora_nums=2))
    model.load_adapter(folder, "second")
    return model


DOORS = [from_pretrained, low_memory, by_transformers, by_state_dict, as_second]


@pytest.fixture(params=DOORS, ids=lambda door: door.__name__)
def door(request: pytest.FixtureRequest) -> Any:
    return request.param


def llama(hidden_size: int = 32, num_hidden_layers: int = 2) -> LlamaForCausalLM:
    size = {"hidden_size": hidden_size, "intermediate_size": 48, "num_hidden_layers": num_hidden_layers}
    return LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2, num_key_value_heads=2, vocab_size=64))


def test_what_fits_passes_every_door(door: Callable[..., Any], saved: Path) -> None:
    door(llama(), saved)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"hidden_size": 64}, "the adapter was trained on .* with 32 in-features and 48 out-features"),
        ({"num_hidden_layers": 3}, r"holds no weights for model.layers.2.mlp.\w+ and 2 more linears of this model"),
        ({"num_hidden_layers": 1}, r"holds weights for model.layers.1.mlp.\w+ and 2 more linears, which this model"),
    ],
)
def test_another_base_model(door: Callable[..., Any], base: dict[str, int], message: str, saved: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        door(llama(**base), saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_nums": 8}, r"says lora_nums=8, but the weights of model.layers.0.mlp.\w+ hold 3 experts"),
        ({"r": 4}, r"says r=4 for model.layers.0.mlp.\w+, but its A has 6 rows for 3 experts, not 3 × 4"),
    ],
)
def test_another_configuration(door: Callable[..., Any], changes: dict[str, int], message: str, saved: Path) -> None:
    edit(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        door(llama(), saved)


@pytest.mark.parametrize("part", ["A", "B", "router"])
def test_a_part_that_is_missing(door: Callable[..., Any], part: str, saved: Path) -> None:
    lost = f"base_model.model.{UP}.loramoe_{part}.weight"
    left = {name: tensor for name, tensor in load_file(saved / SAFE).items() if name != lost}
    save_file(left, saved / SAFE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{UP} should have a router, A and B, but .* lack its loramoe_{part}"):
        door(llama(), saved)


@pytest.mark.parametrize("door", [from_pretrained, low_memory, by_transformers, as_second])
def test_modules_to_save(door: Callable[..., Any], adapted: Any, tmp_path: Path) -> None:
    adapted(modules_to_save=["lm_head"]).save_pretrained(tmp_path)
    door(llama(), tmp_path)
    tensors = load_file(tmp_path / SAFE)
    for wrong in ({"base_model.model.lm_head.weight": torch.ones(65, 32)}, {}):
        left = {name: tensor for name, tensor in tensors.items() if "lm_head" not in name}
        save_file(left | wrong, tmp_path / SAFE, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"lm_head.weight"):
            door(llama(), tmp_path)


def test_nothing_is_put_on_the_model_before_all_was_checked(adapted: Any) -> None:
    model = adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = {name: torch.ones_like(t) for name, t in model.state_dict().items() if "loramoe_" in name}
    given = {name.replace(".default", ""): tensor for name, tensor in given.items()}
    given[f"base_model.model.{UP}.loramoe_B.weight"] = torch.ones(1, 6)
    with pytest.raises(CheckpointError, match="with 32 in-features and 1 out-features; this model has 32 and 48"):
        set_peft_model_state_dict(model, given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:Some weights of")
def test_who_wants_it_may_leave_out_what_does_not_fit(adapted: Any) -> None:
    model = adapted()
    name = f"base_model.model.{UP}.loramoe_B.weight"
    set_peft_model_state_dict(model, {name: torch.ones(1, 6)}, ignore_mismatched_sizes=True)
