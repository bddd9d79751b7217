"""What PEFT promises of the adapters of one model: added, made active, deleted, told of, whatever else they train."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn

from tests.conformance.small import Deep, Mlp, config, later_peft, rows, seeded
from tests.helpers import layers_of, trainable

deletion_is_told = pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted")


def deep(*configs: Any) -> Any:
    """A model with the adapters "default", "one", "two" and so on."""
    names = ("default", "one", "two", "three")
    model = get_peft_model(seeded(Deep), configs[0])
    for name, each in zip(names[1:], configs[1:], strict=False):
        model.add_adapter(name, each)
    return model.eval()


def at(model: Any, path: str) -> Any:
    return model.base_model.model.get_submodule(path)


# --- added ------------------------------------------------------------------------------------------------------------


def test_one_adapter_is_active_until_another_is_made_so() -> None:
    model = deep(config(), config())
    assert (model.active_adapter, model.active_adapters) == ("default", ["default"])
    model.set_adapter("one")
    assert (model.active_adapter, model.active_adapters) == ("one", ["one"])
    model.base_model.set_adapter(["default", "one"])
    assert model.active_adapters == ["default", "one"]
    with pytest.raises(ValueError, match="Adapter nobody not found"):
        model.set_adapter("nobody")


@later_peft
def test_a_name_that_is_taken_is_refused_and_nothing_changes() -> None:
    model = deep(config())
    before, given = {k: v.clone() for k, v in model.state_dict().items()}, model.peft_config["default"]
    with pytest.raises(ValueError, match="Adapter with name 'default' already exists"):
        model.add_adapter("default", config(r=4))
    assert model.peft_config["default"] is given
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@later_peft
def test_an_adapter_that_fails_leaves_no_name_behind() -> None:
    model = deep(config())
    with pytest.raises(ValueError, match=r"Target modules .* not found"):
        model.add_adapter("one", config("nowhere"))
    assert list(model.peft_config) == ["default"]


def test_another_method_is_refused_beside_ours() -> None:
    with pytest.raises(ValueError, match=r"Cannot combine adapters with different peft types. Found .* and .*LORA"):
        deep(config(), LoraConfig(target_modules=["lin0"]))


def test_a_model_in_evaluation_stays_in_evaluation() -> None:
    model = get_peft_model(seeded(Deep), config(lora_dropout=0.5))
    model.add_adapter("one", config(lora_dropout=0.5))
    for name in ("default", "one"):
        model.set_adapter(name)
        assert not [module for layer in layers_of(model).values() for module in layer.modules() if module.training]
        assert torch.equal(model(rows(6)), model(rows(6)))


def test_adapters_of_other_linears_are_each_where_they_belong() -> None:
    model = deep(config("layers.0.lin0", "layers.1.lin0"), config("layers.1.lin0", "layers.2.lin0"))
    for name in ("default", "one", "default"):
        model.set_adapter(name)
        assert {tuple(layer.active_adapters) for layer in layers_of(model).values()} == {(name,)}
    assert {path[-6]: sorted(layer.r) for path, layer in layers_of(model).items()} == {
        "0": ["default"],
        "1": ["default", "one"],
        "2": ["one"],
    }


def test_an_adapter_does_not_target_what_is_inside_another() -> None:
    model = deep(config(), config())
    model.add_adapter("all", config().__class__(target_modules=r".*lin0.*", lora_nums=2))
    assert {type(layer.base_layer) for layer in layers_of(model).values()} == {nn.Linear}
    assert {tuple(sorted(layer.r)) for layer in layers_of(model).values()} == {("all", "default", "one")}


def test_a_model_that_has_adapters_is_told_of() -> None:
    base = Mlp()
    model = get_peft_model(base, config())
    with pytest.warns(UserWarning, match="You are trying to modify a model with PEFT for a second time"):
        get_peft_model(base, config())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="You are trying to modify")
        get_peft_model(model.unload(), config())


def test_a_module_that_one_adapter_trains_whole_is_not_adapted_by_another() -> None:
    model = deep(config("lin0", modules_to_save=["layers.0.lin1"]))
    with pytest.raises(ValueError, match=r"LoRAMoE adapts linear layers; got ModulesToSaveWrapper. Leave it out of"):
        model.add_adapter("one", config("lin1"))


def test_a_base_of_another_name_is_told_of(tiny_llama: Any) -> None:
    model = tiny_llama()
    model.name_or_path = "this/one"
    with pytest.warns(UserWarning, match=r"`base_model_name_or_path` was renamed from 'another' to 'this/one'"):
        adapted = get_peft_model(model, config("up_proj", base_model_name_or_path="another"))
    assert adapted.peft_config["default"].base_model_name_or_path == "this/one"


def test_another_revision_is_told_of() -> None:
    with pytest.warns(UserWarning, match="already set base model revision to v1, overwriting with revision v2"):
        model = get_peft_model(Mlp(), config(revision="v1"), revision="v2")
    assert model.peft_config["default"].revision == "v2"


# --- deleted ----------------------------------------------------------------------------------------------------------


@deletion_is_told
def test_nothing_of_a_deleted_adapter_is_left() -> None:
    model = deep(config(), config(modules_to_save=["layers.2.lin1"]))
    model.set_adapter("one")
    model.delete_adapter("one")
    assert model.active_adapters == ["default"]
    for module in model.modules():
        held = {name for name, value in vars(module).items() if isinstance(value, dict) and "one" in value}
        assert not held & {"_modules", "_parameters", *getattr(type(module), "other_param_names", ())}
    assert "one" not in model.peft_config
    model.delete_adapter("default")
    assert model.active_adapters == []
    torch.testing.assert_close(model.base_model(rows(6)), seeded(Deep)(rows(6)))


@deletion_is_told
def test_the_next_adapter_takes_the_place_of_a_deleted_one() -> None:
    model = deep(config(), config(), config())
    model.delete_adapter("default")
    assert model.active_adapters == ["one"]
    model.delete_adapter("two")
    assert model.active_adapters == ["one"]
    assert trainable(model) == {name for name, _ in model.named_parameters() if ".one." in name}
    model(rows(6))


def test_one_of_two_active_adapters_is_deleted() -> None:
    model = deep(config(), config())
    model.base_model.set_adapter(["default", "one"])
    model.delete_adapter("default")
    assert model.base_model.active_adapters == ["one"]


# --- modules that are trained whole -----------------------------------------------------------------------------------


@later_peft
@deletion_is_told
def test_modules_to_save_of_some_adapters_and_not_of_others() -> None:
    model = deep(config(modules_to_save=["layers.2.lin1"]), config(), config(modules_to_save=["layers.2.lin1"]))
    wrapper = at(model, "layers.2.lin1")
    assert set(wrapper.modules_to_save) == {"default", "two"}
    for name in ("one", "two", "default"):
        model.set_adapter(name)
        model(rows(6))
    model.delete_adapter("default")
    assert (model.active_adapters, set(wrapper.modules_to_save)) == (["one"], {"two"})
    model(rows(6))
    model.delete_adapter("one")
    assert model.active_adapters == ["two"]
    assert wrapper.modules_to_save["two"].weight is wrapper.weight
    model(rows(6))


@later_peft
def test_one_module_is_not_two_adapters_at_once() -> None:
    model = deep(config(modules_to_save=["layers.0.lin1"]), config(modules_to_save=["layers.0.lin1"]))
    with pytest.raises(ValueError, match="Only one adapter can be set at a time for ModulesToSaveWrapper"):
        model.base_model.set_adapter(["default", "one"])


@later_peft
def test_each_of_two_active_adapters_may_have_a_module_of_its_own() -> None:
    model = deep(config(modules_to_save=["layers.0.lin1"]), config(modules_to_save=["layers.1.lin1"]))
    model.base_model.set_adapter(["default", "one"])
    assert at(model, "layers.0.lin1").active_adapters == ["default"]
    assert at(model, "layers.1.lin1").active_adapters == ["one"]


def test_a_module_is_copied_for_the_adapters_alone_that_train_it() -> None:
    model = deep(config(modules_to_save=["layers.0.lin1"]), config(modules_to_save=["layers.1.lin1"]))
    kept = {n: list(m.modules_to_save) for n, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)}
    assert kept == {
        "base_model.model.layers.0.lin1": ["default"],
        "base_model.model.layers.1.lin1": ["one"],
    }


def test_what_is_inside_a_module_to_save_is_not_adapted() -> None:
    model = get_peft_model(Deep(), config("lin0", modules_to_save=["layers.2.lin0"]))
    assert [name[-6:-5] for name in layers_of(model)] == ["0", "1"]
    with pytest.raises(ValueError, match="No modules were targeted for adaptation"):
        get_peft_model(Mlp(), config("lin0", modules_to_save=["lin0"]))


@pytest.mark.parametrize("container", [nn.ModuleDict({"a": nn.Linear(2, 2)}), nn.ModuleList([nn.Linear(2, 2)])])
def test_a_container_cannot_be_trained_whole(container: nn.Module) -> None:
    model = Mlp()
    model.inside = container
    with pytest.raises(TypeError, match="modules_to_save cannot be applied to modules of type"):
        get_peft_model(model, config(modules_to_save=["inside"]))


# --- told of ----------------------------------------------------------------------------------------------------------


def test_status_of_each_linear_and_of_the_model() -> None:
    model = deep(config(), config("lin1", "lin0"))
    one, *_ = model.get_layer_status()
    assert (one.name, one.enabled, one.active_adapters, one.merged_adapters) == (
        "model.layers.0.lin0",
        True,
        ["default"],
        [],
    )
    assert one.devices == {"default": ["cpu"], "one": ["cpu"]}
    model.set_adapter("one")
    assert model.get_model_status().requires_grad == {"default": False, "one": True}
    next(iter(layers_of(model).values())).enable_adapters(False)
    assert model.get_model_status().enabled == "irregular"
    told = "some adapter layers that are enabled and others that are disabled"
    with pytest.warns(UserWarning, match=told), model.disable_adapter():
        pass
    assert model.get_model_status().enabled is True


def test_status_counts_the_parameters() -> None:
    model = get_peft_model(Mlp(), config("lin0", modules_to_save=["lin1"]))
    status = model.get_model_status()
    D, F, E, R = 10, 20, 3, 2
    own = E * R * (D + F) + E * D + (20 * 2 + 2)
    assert status.trainable_params == own == model.get_nb_trainable_parameters()[0]
    assert status.total_params == own + sum(p.numel() for p in Mlp().parameters())
    assert status.base_model_type == "Mlp"


def test_the_linear_can_be_looked_at_through_the_layer() -> None:
    model = get_peft_model(Mlp(), config("lin0"))
    layer = at(model, "lin0")
    assert layer.weight is layer.base_layer.weight
    assert layer.bias is layer.base_layer.bias
    for part in ("loramoe.LoraMoeLayer(", "in_features=10", "out_features=20", "loramoe_A", "default"):
        assert part in repr(layer)
