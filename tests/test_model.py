"""What PEFT promises of a tuner, each promise on a model whose adapter has random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraMoeConfig,
    PeftConfig,
    PeftModel,
    PeftModelForCausalLM,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from loramoe.hooks import last_balance
from tests.helpers import layers_of, trainable

Maker = Callable[..., Any]
TYPES = torch.tensor([0, 1])


# --- saving and loading -----------------------------------------------------------------------------------------------


def test_get_peft_model_trains_the_adapter_alone(adapted: Maker) -> None:
    model = adapted()
    assert type(model) is PeftModelForCausalLM
    assert len(layers_of(model)) == 2 * 3
    assert trainable(model) == {name for name, _ in model.named_parameters() if ".loramoe_" in name}


def test_saved_weights_come_back_bit_for_bit(adapted: Maker, tiny_llama: Maker, saved: Path, ids: Tensor) -> None:
    model = adapted()
    weights = load_file(saved / "adapter_model.safetensors")
    own = get_peft_model_state_dict(model)
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[name], own[name]) for name in own)
    loaded = PeftModel.from_pretrained(tiny_llama(), saved)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not trainable(loaded)
    assert trainable(PeftModel.from_pretrained(tiny_llama(), saved, is_trainable=True)) == trainable(model)


def test_low_cpu_mem_usage(adapted: Maker, tiny_llama: Maker, saved: Path, ids: Tensor) -> None:
    loaded = PeftModel.from_pretrained(tiny_llama(), saved, low_cpu_mem_usage=True)
    assert torch.equal(loaded(ids).logits, adapted()(ids).logits)
    empty = get_peft_model(tiny_llama(), LoraMoeConfig(), low_cpu_mem_usage=True)
    assert {p.device.type for name, p in empty.named_parameters() if "loramoe_" in name} == {"meta"}


@pytest.mark.parametrize("load", [AutoPeftModelForCausalLM, AutoModelForCausalLM])
def test_from_the_folder_alone(load: Any, adapted: Maker, saved: Path, ids: Tensor) -> None:
    loaded = load.from_pretrained(saved).eval()
    assert len(layers_of(loaded)) == 6
    assert torch.equal(loaded(ids).logits, adapted()(ids).logits)


def test_load_adapter_of_transformers(adapted: Maker, tiny_llama: Maker, saved: Path, ids: Tensor) -> None:
    wanted, base = adapted()(ids).logits, tiny_llama()(ids).logits
    model = tiny_llama()
    model.load_adapter(str(saved), adapter_name="first")
    assert torch.equal(model(ids).logits, wanted)
    assert last_balance(model) is None
    model(ids, task_types=TYPES)
    assert last_balance(model, "first").linears == tuple(layers_of(model))
    model.disable_adapters()
    assert torch.equal(model(ids).logits, base)
    model.enable_adapters()
    model.add_adapter(LoraMoeConfig(lora_nums=5, target_modules=["q_proj"]), adapter_name="second")
    model.set_adapter("second")
    assert torch.equal(model(ids).logits, base)  # its B is zero
    model.delete_adapter("second")
    model.set_adapter("first")
    assert torch.equal(model(ids).logits, wanted)


def test_saving_by_transformers(adapted: Maker, tiny_llama: Maker, saved: Path, tmp_path: Path, ids: Tensor) -> None:
    model = tiny_llama()
    model.load_adapter(str(saved))
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path / "again")
    assert torch.equal(again(ids).logits, adapted()(ids).logits)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_inject_adapter_in_model(low_cpu_mem_usage: bool, adapted: Maker, tiny_llama: Maker, ids: Tensor) -> None:
    source = adapted(lora_dropout=0)
    config = LoraMoeConfig(lora_nums=3, r=2, lora_dropout=0)
    model = inject_adapter_in_model(config, tiny_llama(), low_cpu_mem_usage=low_cpu_mem_usage)
    weights = {name.removeprefix("base_model.model."): w for name, w in get_peft_model_state_dict(source).items()}
    result = set_peft_model_state_dict(model, weights, low_cpu_mem_usage=low_cpu_mem_usage)
    assert not result.unexpected_keys
    assert not [name for name in result.missing_keys if "loramoe_" in name]
    assert torch.equal(model.eval()(ids).logits, source(ids).logits)
    assert get_peft_model_state_dict(model).keys() == weights.keys()
    batch = {"input_ids": ids, "labels": ids, "task_types": TYPES}
    assert torch.equal(model.train()(**batch).loss, source.train()(**batch).loss)  # the hooks came along


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters, an inconsistency")
def test_inject_by_the_names_of_the_weights(adapted: Maker, tiny_llama: Maker, ids: Tensor) -> None:
    source = adapted(target_modules=["gate_proj"], layers_to_transform=[1])
    weights = {name.removeprefix("base_model.model."): w for name, w in get_peft_model_state_dict(source).items()}
    config = LoraMoeConfig(lora_nums=3, r=2, target_modules=["gate_proj"])
    model = inject_adapter_in_model(config, tiny_llama(), state_dict=weights)
    set_peft_model_state_dict(model, weights)
    assert list(layers_of(model)) == ["model.layers.1.mlp.gate_proj"]
    assert torch.equal(model.eval()(ids).logits, source(ids).logits)


# --- which linears, with which ranks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"target_modules": ["up_proj"]}, {"0.mlp.up_proj", "1.mlp.up_proj"}),
        ({"target_modules": r".*\.1\.mlp\.(up|down)_proj"}, {"1.mlp.up_proj", "1.mlp.down_proj"}),
        ({"target_modules": ["up_proj"], "layers_to_transform": 1}, {"1.mlp.up_proj"}),
        ({"target_modules": ["up_proj"], "layers_to_transform": [0]}, {"0.mlp.up_proj"}),
        ({"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}, {"1.mlp.up_proj"}),
        (
            {"target_modules": ["up_proj", "q_proj"], "exclude_modules": ["0.mlp.up_proj", "q_proj"]},
            {"1.mlp.up_proj"},
        ),
        ({"exclude_modules": r".*(gate|down)_proj"}, {"0.mlp.up_proj", "1.mlp.up_proj"}),
    ],
)
def test_which_linears_are_adapted(options: dict[str, Any], wanted: set[str], adapted: Maker) -> None:
    names = {name.removeprefix("base_model.model.model.layers.") for name in layers_of(adapted(**options))}
    assert names == wanted


def test_no_linear_of_that_name(adapted: Maker) -> None:
    with pytest.raises(ValueError, match=r"Target modules .*'nowhere'.* not found in the base model"):
        adapted(target_modules=["nowhere"])


def test_patterns_survive_saving(adapted: Maker, tiny_llama: Maker, tmp_path: Path, ids: Tensor) -> None:
    model = adapted(rank_pattern={"up_proj": 5}, alpha_pattern={"layers.1.mlp.down_proj": 20}, use_rslora=True)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    path = "base_model.model.model.layers."
    up, down = (layers_of(loaded)[path + name] for name in ("0.mlp.up_proj", "1.mlp.down_proj"))
    assert (up.r["default"], down.r["default"]) == (5, 2)
    assert (up.scaling["default"], down.scaling["default"]) == (32 / 5**0.5, 20 / 2**0.5)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_modules_to_save(adapted: Maker, tiny_llama: Maker, tmp_path: Path, ids: Tensor) -> None:
    model = adapted(modules_to_save=["lm_head"])
    assert "base_model.model.lm_head.modules_to_save.default.weight" in trainable(model)
    model.save_pretrained(tmp_path)
    assert "base_model.model.lm_head.weight" in load_file(tmp_path / "adapter_model.safetensors")
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not torch.allclose(loaded(ids).logits, adapted()(ids).logits, atol=1e-2)


# --- what a model tells of itself -------------------------------------------------------------------------------------


def test_print_trainable_parameters(adapted: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    model = adapted()
    D, F, E, R = 32, 48, 3, 2  # hidden and intermediate size, experts, rank
    gate_or_up, down = E * R * (D + F) + E * D, E * R * (F + D) + E * F
    experts = 2 * (2 * gate_or_up + down)
    assert model.get_nb_trainable_parameters()[0] == experts
    model.print_trainable_parameters()
    assert f"trainable params: {experts:,} ||" in capsys.readouterr().out


def test_status(two: Any) -> None:
    status = two.get_model_status()
    assert status.peft_types == {"default": "LORAMOE", "two": "LORAMOE"}
    assert (status.adapter_model_type, status.enabled) == ("LoraMoeModel", True)
    assert (status.active_adapters, status.merged_adapters) == (["default"], [])
    assert (status.available_adapters, status.num_adapter_layers) == (["default", "two"], 8)
    layers = {layer.name: layer for layer in two.get_layer_status()}
    up = layers["model.model.layers.0.mlp.up_proj"]
    assert up.module_type == "loramoe.LoraMoeLayer"
    assert up.available_adapters == ["default", "two"]
    assert up.requires_grad == {"default": True, "two": False}


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["merge_and_unload", "merge_adapter", "unmerge_adapter", "_check_merge_allowed"])
def test_merging_is_refused(how: str, adapted: Maker) -> None:
    with pytest.raises(NotImplementedError, match=r"cannot be merged: its experts are mixed by a router .* unload\(\)"):
        getattr(adapted(), how)()


def test_a_weighted_adapter_is_refused(two: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"cannot be averaged into one: each has a router .*set_adapter"):
        two.add_weighted_adapter(["default", "two"], [0.5, 0.5], "mean")


def test_hotswapping_is_refused(adapted: Maker, saved: Path) -> None:
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but LORAMOE was passed"):
        hotswap_adapter(adapted(), saved, adapter_name="default")
    with pytest.raises(ValueError, match="No adapter layers found on the model"):
        prepare_model_for_compiled_hotswap(adapted(), target_rank=8)


def test_mixing_with_other_methods_is_refused(tiny_llama: Maker) -> None:
    with pytest.raises(ValueError, match="'LORAMOE' is not compatible with the `PeftMixedModel`"):
        get_peft_model(tiny_llama(), LoraMoeConfig(), mixed=True)


def test_the_configuration_is_read_as_it_was_saved(adapted: Maker, saved: Path) -> None:
    read, own = PeftConfig.from_pretrained(saved), adapted().peft_config["default"]
    assert type(read) is LoraMoeConfig
    # PEFT saves for inference, and the fixture named the base model.
    read.inference_mode, read.base_model_name_or_path = own.inference_mode, own.base_model_name_or_path
    assert read == own
