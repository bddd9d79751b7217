"""Several adapters on one model, none, and the base model under them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraMoeConfig,
    PeftModel,
)
from torch import Tensor, nn

from loramoe.hooks import last_balance
from tests.helpers import layers_of, trainable

Maker = Callable[..., Any]
TYPES = torch.tensor([0, 1])


# --- several adapters -------------------------------------------------------------------------------------------------


def test_adding_an_adapter_changes_nothing_yet(adapted: Maker, ids: Tensor) -> None:
    model = adapted()
    logits, trained = model(ids).logits, trainable(model)
    model.add_adapter("two", LoraMoeConfig(lora_nums=5, r=3, target_modules=["q_proj"], init_lora_weights=False))
    assert torch.equal(model(ids).logits, logits)
    assert trainable(model) == trained


def test_switching_between_adapters(two: Any, adapted: Maker, ids: Tensor) -> None:
    up = "base_model.model.model.layers.0.mlp.up_proj"
    layer = layers_of(two)[up]
    assert (layer.lora_nums, layer.r) == ({"default": 3, "two": 5}, {"default": 2, "two": 3})
    assert layer.loramoe_A["two"].weight.shape == (5 * 3, 32)
    first = two(ids).logits
    two.set_adapter("two")
    assert trainable(two) == {name for name, _ in two.named_parameters() if ".two." in name}
    second = two(ids).logits
    assert not torch.allclose(first, second, atol=1e-2)
    two.set_adapter("default")
    assert torch.equal(two(ids).logits, first)


def test_each_adapter_is_what_it_is_alone(two: Any, tiny_llama: Maker, tmp_path: Path, ids: Tensor) -> None:
    two.save_pretrained(tmp_path)
    for name, folder in {"default": tmp_path, "two": tmp_path / "two"}.items():
        two.set_adapter(name)
        alone = PeftModel.from_pretrained(tiny_llama(), folder)
        assert torch.equal(alone(ids).logits, two(ids).logits)


def test_both_adapters_at_once(two: Any, ids: Tensor) -> None:
    layer = layers_of(two)["base_model.model.model.layers.0.mlp.up_proj"]
    x = torch.randn(2, 3, 32)
    deltas = [layer.add_mixture(name, torch.zeros(2, 3, layer.out_features), x) for name in ("default", "two")]
    two.base_model.set_adapter(["default", "two"])
    torch.testing.assert_close(layer(x), layer.base_layer(x) + deltas[0] + deltas[1])
    two.train()(ids, labels=ids, task_types=TYPES).loss.backward()
    assert last_balance(two, "default").gate_TLE.shape == (2, 6, 3)
    assert last_balance(two, "two").gate_TLE.shape == (2, 4, 5)
    assert all(p.grad is not None for name, p in two.named_parameters() if "loramoe_" in name)


def test_loading_a_second_adapter(two: Any, adapted: Maker, saved: Path, ids: Tensor) -> None:
    two.load_adapter(saved, adapter_name="three")
    two.set_adapter("three")
    assert torch.equal(two(ids).logits, adapted()(ids).logits)


def test_delete_adapter(two: Any, ids: Tensor) -> None:
    wanted = two(ids).logits
    two.delete_adapter("two")
    assert list(two.peft_config) == ["default"]
    assert two.active_adapters == ["default"]
    assert not [name for name, _ in two.named_parameters() if ".two." in name]
    assert all("two" not in (layer.lora_nums | layer.scaling) for layer in layers_of(two).values())
    assert torch.equal(two(ids).logits, wanted)
    with pytest.raises(ValueError, match="Adapter two does not exist"):
        two.delete_adapter("two")


@pytest.mark.filterwarnings("ignore:Adapter default was active which is now deleted")
def test_delete_the_active_adapter(two: Any, ids: Tensor) -> None:
    two.set_adapter("two")
    wanted = two(ids).logits
    two.set_adapter("default")
    two.delete_adapter("default")
    assert two.active_adapters == ["two"]
    assert torch.equal(two(ids).logits, wanted)


def test_delete_the_last_adapter(adapted: Maker, tiny_llama: Maker, ids: Tensor) -> None:
    model = adapted()
    model.base_model.delete_adapter("default")
    assert torch.equal(model.base_model(ids).logits, tiny_llama()(ids).logits)


# --- the base model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
def test_disable_adapter_is_the_base_bit_for_bit(
    modules_to_save: Any, adapted: Maker, tiny_llama: Maker, ids: Tensor
) -> None:
    model = adapted(modules_to_save=modules_to_save)
    logits, trained = model(ids).logits, trainable(model)
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, tiny_llama()(ids).logits)
    assert torch.equal(model(ids).logits, logits)
    assert trainable(model) == trained


def test_disabled_training_forward_has_no_constraint(adapted: Maker, tiny_llama: Maker, ids: Tensor) -> None:
    model = adapted().train()
    with model.disable_adapter():
        loss = model(ids, labels=ids, task_types=TYPES).loss
    assert torch.equal(loss, tiny_llama()(ids, labels=ids).loss)


def test_unload_gives_the_base_back(adapted: Maker, tiny_llama: Maker, ids: Tensor) -> None:
    base = adapted().unload()
    assert torch.equal(base(ids).logits, tiny_llama()(ids).logits)
    assert [name for name, _ in base.named_modules()] == [name for name, _ in tiny_llama().named_modules()]
    assert not base._forward_hooks
    assert not base._forward_pre_hooks
    assert base.state_dict().keys() == tiny_llama().state_dict().keys()


def test_unload_keeps_trained_modules_to_save(adapted: Maker, ids: Tensor) -> None:
    model = adapted(modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head.modules_to_save["default"].weight.clone()
    base = model.unload()
    assert type(base.lm_head) is nn.Linear
    assert torch.equal(base.lm_head.weight, head)


def test_frozen_weights_stay_bit_for_bit(adapted: Maker, ids: Tensor) -> None:
    model = adapted().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, labels=ids, task_types=TYPES).loss.backward()
        optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == trainable(model) != set()
