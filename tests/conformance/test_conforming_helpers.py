"""What PEFT offers beside the model: helpers, the model card, injection without a PeftModel, transformers' own door."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraMoeConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from peft.helpers import check_if_peft_model, rescale_adapter_scale, update_signature
from peft.utils import ModulesToSaveWrapper
from torch import Tensor

from tests.conformance.small import Mlp, config, rows, seeded
from tests.helpers import layers_of, trainable

Maker = Callable[..., Any]


# --- helpers ----------------------------------------------------------------------------------------------------------


def test_what_is_an_adapter_s_folder(saved: Path, tmp_path: Path) -> None:
    get_peft_model(Mlp(), config(), adapter_name="other").save_pretrained(tmp_path / "named")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text('{"foo": "bar"}')
    found = {str(folder.relative_to(tmp_path)): check_if_peft_model(str(folder)) for folder in folders(tmp_path, saved)}
    assert found == {"adapter": True, "base": False, "named": False, "named/other": True, "broken": False}


def folders(root: Path, saved: Path) -> list[Path]:
    return [saved, saved.parent / "base", root / "named", root / "named" / "other", root / "broken"]


def test_rescaling_for_a_while_is_refused() -> None:
    model = get_peft_model(Mlp(), config())
    told = "scaling is only supported for models with `LoraLayer`s"
    with pytest.raises(ValueError, match=told), rescale_adapter_scale(model, 0.5):
        pass


def test_signatures_of_the_base_are_shown(tiny_llama: Maker) -> None:
    model = get_peft_model(tiny_llama(), config("up_proj"))
    update_signature(model, "forward")
    assert "input_ids" in inspect.signature(model.forward).parameters


def test_nothing_can_be_converted_to_plain_lora() -> None:
    import peft

    model = get_peft_model(Mlp(), config())
    if "convert_to_lora" not in dir(peft):
        pytest.skip("a function that peft 0.17 does not have")
    assert not model.supports_lora_conversion()
    with pytest.raises((TypeError, ValueError), match=r"not support"):
        peft.convert_to_lora(model, rank=4)


# --- the model card ---------------------------------------------------------------------------------------------------


def card(folder: Path) -> tuple[dict[str, Any], str]:
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_card_is_written(saved: Path) -> None:
    head, text = card(saved)
    assert head["library_name"] == "peft"
    assert head["pipeline_tag"] == "text-generation"
    assert "base_model" in head
    assert len(text) > 1000
    assert "Framework versions" in text


def test_a_card_that_is_there_is_added_to(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    get_peft_model(Mlp(), config()).save_pretrained(tmp_path)
    head, text = card(tmp_path)
    assert head == {"license": "mit", "library_name": "peft"} | {
        k: head[k] for k in head if k in ("tags", "base_model")
    }
    assert "# Mine" in text


# --- injection --------------------------------------------------------------------------------------------------------


def test_modules_to_save_of_an_injected_adapter() -> None:
    model = inject_adapter_in_model(config("lin0", modules_to_save=["lin1"]), Mlp())
    assert isinstance(model.lin1, ModulesToSaveWrapper)
    assert {name for name in get_peft_model_state_dict(model) if "loramoe_" not in name} == {"lin1.weight", "lin1.bias"}


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_injected_by_names_and_by_configuration_are_the_same(
    low_cpu_mem_usage: bool, recwarn: pytest.WarningsRecorder
) -> None:
    by_config = get_peft_model_state_dict(inject_adapter_in_model(config("lin0", "lin1"), Mlp()))
    recwarn.clear()
    model = inject_adapter_in_model(
        config("lin0", "lin1"), Mlp(), state_dict=by_config, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert not [warning for warning in recwarn if "inconsistency" in str(warning.message)]
    by_names = get_peft_model_state_dict(model)
    assert {name: tensor.shape for name, tensor in by_names.items()} == {
        name: tensor.shape for name, tensor in by_config.items()
    }
    assert {tensor.device.type for tensor in by_names.values()} == {"meta" if low_cpu_mem_usage else "cpu"}


@pytest.mark.parametrize(
    ("targets", "told"),
    [(["lin0", "lin1"], r"The PEFT config contained these additional target modules: \['lin1'\]"), (["lin0"], None)],
)
def test_names_that_differ_from_the_configuration_are_told(
    targets: list[str], told: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    names = get_peft_model_state_dict(inject_adapter_in_model(config("lin0"), Mlp()))
    recwarn.clear()
    if told is None:
        inject_adapter_in_model(config(*targets), Mlp(), state_dict=names)
        assert not [warning for warning in recwarn if "inconsistency" in str(warning.message)]
        return
    with pytest.warns(RuntimeWarning, match=told):
        assert list(layers_of(inject_adapter_in_model(config(*targets), Mlp(), state_dict=names))) == ["lin0"]


def test_an_injected_adapter_computes_what_a_peft_model_does() -> None:
    base, other = seeded(Mlp), seeded(Mlp)
    torch.manual_seed(4)
    injected = inject_adapter_in_model(config("lin0"), base)
    torch.manual_seed(4)
    wrapped = get_peft_model(other, config("lin0"))
    assert torch.equal(injected(rows()), wrapped(rows()))
    assert {f"base_model.model.{name}" for name in trainable(injected)} == trainable(wrapped)


# --- the door of transformers -----------------------------------------------------------------------------------------


def test_adapters_of_transformers_come_and_go(tiny_llama: Maker, perturb: Maker, ids: Tensor) -> None:
    model = tiny_llama()
    model.add_adapter(LoraMoeConfig(lora_nums=3, r=2), adapter_name="first")
    model.add_adapter(LoraMoeConfig(lora_nums=2, r=3), adapter_name="second")
    perturb(model)
    assert model.active_adapters() == ["second"]
    second = model(ids).logits
    model.set_adapter("first")
    first = model(ids).logits
    assert not torch.allclose(first, second, atol=1e-2)
    model.set_adapter(["first", "second"])
    assert model.active_adapters() == ["first", "second"]
    assert {name.split(".")[-2] for name in trainable(model)} == {"first", "second"}
    model.delete_adapter("second")
    model.set_adapter("first")
    assert torch.equal(model(ids).logits, first)
    assert set(model.peft_config) == {"first"}
    with pytest.raises(ValueError, match=r"[Aa]dapter"):
        model.set_adapter("second")
    with pytest.raises(ValueError, match=r"already exists"):
        model.add_adapter(LoraMoeConfig(), adapter_name="first")


def test_adapters_of_transformers_are_switched_off(tiny_llama: Maker, perturb: Maker, ids: Tensor) -> None:
    model = tiny_llama()
    model.add_adapter(LoraMoeConfig(lora_nums=3, r=2))
    adapted = perturb(model)(ids).logits
    model.disable_adapters()
    assert torch.equal(model(ids).logits, tiny_llama()(ids).logits)
    model.enable_adapters()
    assert torch.equal(model(ids).logits, adapted)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_loaded_by_transformers(
    low_cpu_mem_usage: bool, adapted: Maker, tiny_llama: Maker, saved: Path, ids: Tensor
) -> None:
    model = tiny_llama()
    model.load_adapter(str(saved), adapter_name="one", low_cpu_mem_usage=low_cpu_mem_usage)
    model.load_adapter(str(saved), adapter_name="two")
    assert not [p for p in model.parameters() if p.device.type == "meta"]
    assert torch.equal(model.eval()(ids).logits, adapted()(ids).logits)
    model.set_adapter("one")
    assert torch.equal(model(ids).logits, adapted()(ids).logits)
    assert get_peft_model_state_dict(model, adapter_name="one").keys() == model.get_adapter_state_dict("one").keys()


def test_what_transformers_saves_peft_loads(tiny_llama: Maker, perturb: Maker, tmp_path: Path, ids: Tensor) -> None:
    model = tiny_llama()
    model.add_adapter(LoraMoeConfig(lora_nums=3, r=2))
    perturb(model).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
