"""What PEFT promises of which parameters are trained, and of a model whose adapters are switched off for a while."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from tests.conformance.small import Deep, config, later_peft, rows, seeded
from tests.helpers import layers_of, trainable


def of(model: Any, *names: str) -> set[str]:
    """Names of the parameters of some adapters."""
    return {path for path, _ in model.named_parameters() if any(f".{name}" in path for name in names)}


@pytest.fixture
def pair() -> Any:
    """A model with the adapters "default" and "other", which share a linear."""
    model = get_peft_model(seeded(Deep), config("layers.0.lin0"))
    model.add_adapter("other", config("layers.0.lin0", "layers.1.lin0"))
    return model


@pytest.fixture
def whole(pair: Any) -> Any:
    """The same, and a third adapter "third" which also trains a linear whole."""
    pair.add_adapter("third", config("layers.0.lin0", modules_to_save=["layers.2.lin0"]))
    return pair


# --- which parameters are trained -------------------------------------------------------------------------------------


def test_the_active_adapter_is_trained(pair: Any) -> None:
    assert trainable(pair) == of(pair, "default") != set()
    pair.set_adapter("other")
    assert trainable(pair) == of(pair, "other")
    pair.base_model.set_adapter(["default", "other"])
    assert trainable(pair) == of(pair, "default", "other")


@later_peft
def test_what_an_adapter_trains_whole_goes_with_it(whole: Any) -> None:
    assert trainable(whole) == of(whole, "default")
    whole.set_adapter("third")
    assert trainable(whole) == of(whole, "third")
    whole.set_adapter("other")
    assert trainable(whole) == of(whole, "other")


def test_other_targets_or_the_same() -> None:
    model = get_peft_model(Deep(), config("lin0"))
    model.add_adapter("other", config("lin1"))
    assert trainable(model) == of(model, "default")
    model.set_adapter("other")
    assert trainable(model) == of(model, "other")


@later_peft
def test_an_adapter_is_made_active_without_being_trained(pair: Any) -> None:
    pair.set_adapter("other", inference_mode=True)
    assert pair.active_adapters == ["other"]
    assert not trainable(pair)


@later_peft
def test_training_is_switched_on_and_off_by_name(whole: Any) -> None:
    whole.set_requires_grad("third")
    assert trainable(whole) == of(whole, "default", "third")
    whole.set_requires_grad(["default", "third"], requires_grad=False)
    assert not trainable(whole)
    assert whole.active_adapters == ["default"]


@later_peft
def test_adapters_loaded_for_inference_stay_frozen_when_more_come(tmp_path: Path) -> None:
    get_peft_model(Deep(), config()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(Deep(), tmp_path)
    assert not trainable(model)
    model.load_adapter(tmp_path, "second")
    assert not trainable(model)
    model.set_adapter("second")
    assert trainable(model) == of(model, "second")


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
    layer.loramoe_router["default"].weight.requires_grad = False
    layer.base_layer.weight.requires_grad = True
    before = trainable(model)
    model.load_adapter(tmp_path, "other")
    assert trainable(model) == before


@later_peft
@pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted")
def test_what_takes_the_place_of_a_deleted_adapter_is_trained(whole: Any) -> None:
    whole.delete_adapter("other")
    whole.delete_adapter("default")
    assert whole.active_adapters == ["third"]
    assert trainable(whole) == of(whole, "third")


def test_each_trained_parameter_has_a_gradient_and_no_other(pair: Any) -> None:
    pair.base_model.set_adapter(["default", "other"])
    pair(rows(6)).pow(2).sum().backward()
    assert {path for path, p in pair.named_parameters() if p.grad is not None} == trainable(pair)


def test_a_few_steps_are_saved_and_loaded(tmp_path: Path) -> None:
    model = get_peft_model(seeded(Deep), config("lin0", modules_to_save=["layers.2.lin1"], init_lora_weights=True))
    before = {path: p.detach().clone() for path, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(rows(6)).pow(2).sum().backward()
        optimizer.step()
    assert {path for path, p in model.named_parameters() if not torch.equal(p, before[path])} == trainable(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(seeded(Deep), tmp_path)(rows(6)), model.eval()(rows(6)))


# --- adapters that are switched off -----------------------------------------------------------------------------------


def test_disabling_is_the_base_and_back_again(pair: Any) -> None:
    base, pair = seeded(Deep)(rows(6)), pair.eval()
    with pair.disable_adapter():  # before any forward
        assert torch.equal(pair(rows(6)), base)
        assert not trainable(pair)
    assert trainable(pair) == of(pair, "default")
    pair.set_adapter("other")
    adapted = pair(rows(6))
    assert not torch.allclose(adapted, base)
    with pair.disable_adapter():
        assert torch.equal(pair(rows(6)), base)
    assert torch.equal(pair(rows(6)), adapted)
    assert trainable(pair) == of(pair, "other")


def test_disabling_within_disabling(pair: Any) -> None:
    def disabled() -> set[bool]:
        return {layer.disable_adapters for layer in layers_of(pair).values()}

    with pair.disable_adapter():
        with pair.disable_adapter():
            assert disabled() == {True}
        assert disabled() == {True}
    assert disabled() == {False}


def test_what_was_off_before_stays_off(pair: Any) -> None:
    pair.base_model.disable_adapter_layers()
    with pair.disable_adapter():
        pass
    assert {layer.disable_adapters for layer in layers_of(pair).values()} == {True}
    pair.base_model.enable_adapter_layers()
    assert trainable(pair) == of(pair, "default")


def test_an_error_inside_switches_them_on_again(pair: Any) -> None:
    with pytest.raises(RuntimeError, match="shapes"), pair.disable_adapter():
        pair(rows(7))
    assert {layer.disable_adapters for layer in layers_of(pair).values()} == {False}
