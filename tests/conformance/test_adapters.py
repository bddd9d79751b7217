"""What PEFT promises of adapters on one model: their layers, which is active, which is trained, what is deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, LoraMoeConfig, PeftModel, get_peft_model
from torch import nn

from tests.conformance.small import Deep, Mlp, config, later_peft, rows, seeded
from tests.helpers import layers_of, trainable

pytestmark = pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted")


def deep(*configs: Any) -> Any:
    """A model with the adapters "default", "one" and "two"."""
    model = get_peft_model(seeded(Deep), configs[0])
    for name, each in zip(("one", "two"), configs[1:], strict=False):
        model.add_adapter(name, each)
    return model.eval()


def of(model: Any, *names: str) -> set[str]:
    """Names of the parameters of some adapters."""
    return {path for path, _ in model.named_parameters() if any(f".{name}" in path for name in names)}


def at(model: Any, path: str) -> Any:
    return model.base_model.model.get_submodule(path)


@later_peft
@pytest.mark.parametrize(
    ("name", "refused", "message"),
    [
        ("default", config(r=4), "Adapter with name 'default' already exists"),
        ("one", config("lin0", "nowhere"), r"Target modules .* not found"),
        ("one", LoraConfig(target_modules=["lin0"]), "Cannot combine adapters with different peft types"),
    ],
)
def test_an_adapter_that_is_refused_changes_nothing(name: str, refused: Any, message: str) -> None:
    model = deep(config())
    before, given = {k: v.clone() for k, v in model.state_dict().items()}, model.peft_config["default"]
    with pytest.raises(ValueError, match=message):
        model.add_adapter(name, refused)
    assert list(model.peft_config.values()) == [given]
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_model_in_evaluation_stays_in_evaluation() -> None:
    model = get_peft_model(seeded(Deep), config(lora_dropout=0.5))
    model.add_adapter("one", config("lin0", "lin1", lora_dropout=0.5))
    for name in ("default", "one"):
        model.set_adapter(name)
        assert not [module for layer in layers_of(model).values() for module in layer.modules() if module.training]
        assert torch.equal(model(rows(6)), model(rows(6)))


def test_adapters_of_different_layers() -> None:
    model = deep(config("layers.0.lin0", "layers.1.lin0"), config("layers.1.lin0", "layers.2.lin0"))
    for name in ("default", "one", "default"):
        model.set_adapter(name)
        assert {tuple(layer.active_adapters) for layer in layers_of(model).values()} == {(name,)}
    assert [sorted(layer.r) for layer in layers_of(model).values()] == [["default"], ["default", "one"], ["one"]]
    model.add_adapter("two", type(config())(target_modules=r".*lin0.*"))
    assert {type(layer.base_layer) for layer in layers_of(model).values()} == {nn.Linear}


def test_nothing_of_a_deleted_adapter_is_left() -> None:
    model = deep(config(), config(modules_to_save=["layers.2.lin1"]))
    model.set_adapter("one")
    model.delete_adapter("one")
    assert model.active_adapters == list(model.peft_config) == ["default"]
    for module in model.modules():
        held = {name for name, value in vars(module).items() if isinstance(value, dict) and "one" in value}
        assert not held & {"_modules", "_parameters", *getattr(type(module), "other_param_names", ())}
    model.delete_adapter("default")
    assert model.active_adapters == []
    torch.testing.assert_close(model.base_model(rows(6)), seeded(Deep)(rows(6)))


def test_the_next_adapter_takes_the_place_of_a_deleted_one() -> None:
    model = deep(config(), config(), config())
    for deleted in ("default", "two"):
        model.delete_adapter(deleted)
        assert model.active_adapters == ["one"]
    assert trainable(model) == of(model, "one")
    model = deep(config(), config())
    model.base_model.set_adapter(["default", "one"])
    model.delete_adapter("default")
    assert model.base_model.active_adapters == ["one"]


@later_peft
def test_modules_to_save_of_some_adapters_only() -> None:
    model = deep(config(modules_to_save=["layers.2.lin1"]), config(), config(modules_to_save=["layers.2.lin1"]))
    wrapper = at(model, "layers.2.lin1")
    assert set(wrapper.modules_to_save) == {"default", "two"}
    for name in ("one", "two", "default"):
        model.set_adapter(name)
        model(rows(6))
    model.delete_adapter("default")
    assert (model.active_adapters, set(wrapper.modules_to_save)) == (["one"], {"two"})
    model.delete_adapter("one")
    assert wrapper.modules_to_save["two"].weight is wrapper.weight
    assert trainable(model) == of(model, "two")


@later_peft
def test_the_active_adapters_are_trained() -> None:
    whole = config("layers.0.lin0", modules_to_save=["layers.2.lin0"])
    trio = deep(config("layers.0.lin0"), config("layers.0.lin0", "layers.1.lin0"), whole)
    assert trainable(trio) == of(trio, "default")
    for name in ("two", "one"):
        trio.set_adapter(name)
        assert trainable(trio) == of(trio, name)
    trio.base_model.set_adapter(["default", "two"])
    trio(rows(6)).pow(2).sum().backward()
    with_gradient = {path for path, p in trio.named_parameters() if p.grad is not None}
    assert with_gradient == trainable(trio) == of(trio, "default", "two")


@later_peft
@pytest.mark.parametrize("is_trainable", [False, True])
def test_each_loaded_adapter_is_trained_as_asked(is_trainable: bool, tmp_path: Path) -> None:
    get_peft_model(Deep(), config("lin0", modules_to_save=["layers.0.lin1"])).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(Deep(), tmp_path, is_trainable=is_trainable)
    model.load_adapter(tmp_path, "same", is_trainable=is_trainable)
    model.load_adapter(tmp_path, "opposite", is_trainable=not is_trainable)
    wanted = of(model, "default", "same") if is_trainable else of(model, "opposite")
    assert trainable(model) == wanted
    model.add_adapter("added", config("layers.1.lin1"))
    assert trainable(model) == wanted


@later_peft
def test_what_the_user_froze_stays_frozen_when_more_come(tmp_path: Path) -> None:
    get_peft_model(Deep(), config()).save_pretrained(tmp_path)
    model = get_peft_model(Deep(), config())
    layer = next(iter(layers_of(model).values()))
    layer.loramoe_experts["default"].router.requires_grad = False
    layer.base_layer.weight.requires_grad = True
    before = trainable(model)
    model.load_adapter(tmp_path, "one")
    assert trainable(model) == before


def names_of(model: Any) -> list[str]:
    return [name.removeprefix("base_model.model.") for name in layers_of(model)]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"target_modules": "lin1"}, ["lin1"]),
        ({"target_modules": "lin.*", "exclude_modules": "lin0"}, ["lin1"]),
        ({"target_modules": "all-linear", "exclude_modules": ["lin1"]}, ["lin0"]),
    ],
)
def test_target_and_exclude_modules(options: dict[str, Any], wanted: list[str]) -> None:
    model = get_peft_model(Mlp(), LoraMoeConfig(**options))
    assert model.targeted_module_names == names_of(model) == wanted


def test_rank_pattern_and_alpha_pattern() -> None:
    pattern, wanted = {"layers.0.lin0": 5, "lin0": 6}, {"0.lin0": 5, "1.lin0": 6, "2.lin0": 6}
    options = {"r": 2, "lora_alpha": 1, "rank_pattern": pattern, "alpha_pattern": pattern}
    model = get_peft_model(Deep(), LoraMoeConfig(target_modules="all-linear", **options))
    layers = {name.removeprefix("base_model.model.layers."): layer for name, layer in layers_of(model).items()}
    assert {name: layer.r["default"] for name, layer in layers.items()} == dict.fromkeys(layers, 2) | wanted
    assert all(layer.scaling["default"] == (1 if name in wanted else 0.5) for name, layer in layers.items())
    model.add_adapter("other", config("lin0", rank_pattern={"layers.1.lin0": 8}))
    assert [layer.r["other"] for layer in layers.values() if "other" in layer.r] == [2, 8, 2]
