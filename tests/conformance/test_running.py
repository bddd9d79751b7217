"""What PEFT promises of an adapted model at work: task types, checkpointing, compilation, methods of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import (
    LoraMoeConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import Tensor

from loramoe import last_balance
from tests.conformance.small import TASKS, Mlp, config, rows, seeded
from tests.helpers import trainable

Maker = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file", "ignore:adapter 'default' has blc_wei")

HEADS = {"QUESTION_ANS": {"qa_outputs"}}
LABELS: dict[str, dict[str, Tensor]] = {
    "CAUSAL_LM": {"labels": torch.arange(2, 12).reshape(2, 5)},
    "SEQ_CLS": {"labels": torch.tensor([0, 2])},
    "TOKEN_CLS": {"labels": torch.ones(2, 5, dtype=torch.long)},
    "QUESTION_ANS": {"start_positions": torch.tensor([0, 1]), "end_positions": torch.tensor([1, 2])},
}


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "QUESTION_ANS", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM"])
def test_auto_classes_load_every_task_type(task_type: str, tmp_path: Path) -> None:
    case = TASKS[task_type]
    base = case.base()
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, case.config()).eval()
    whole = {name.split(".modules_to_save.")[0].split(".")[-1] for name in trainable(model) if "loramoe_" not in name}
    assert whole == HEADS.get(task_type, set())
    model.save_pretrained(tmp_path / "adapter")
    loaded = getattr(peft, f"Auto{type(model).__name__}").from_pretrained(tmp_path / "adapter").eval()
    assert type(loaded) is type(model) is not PeftModel
    assert loaded.peft_config["default"].task_type == task_type
    assert torch.equal(case.output(loaded), case.output(model))


@pytest.mark.parametrize("task_type", LABELS)
def test_the_constraint_of_every_task_type(task_type: str, tmp_path: Path) -> None:
    """Once for a whole batch, and once for two micro-batches of a sample each, as the Trainer counts their labels."""
    model = TASKS[task_type].adapted().train()
    model.peft_config["default"].blc_weight = 2.0
    batch = {**TASKS[task_type].inputs, **LABELS[task_type], "task_types": torch.tensor([0, 1])}
    micro = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for row in (0, 1)]
    trainer = transformers.Trainer(model, transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    items = trainer._get_num_items_in_batch(micro, torch.device("cpu"))
    share = {"num_items_in_batch": 2 if items is None else items}
    for call, part in [(batch, 1.0), *(({**each, **share}, 0.5) for each in micro)]:
        with_constraint = model(**call).loss
        constraint = last_balance(model).constraint
        without = model(**{name: value for name, value in call.items() if name != "task_types"}).loss
        torch.testing.assert_close(with_constraint, without + 2.0 * constraint * part)
        assert constraint > 0


def test_gradient_checkpointing(adapted: Maker, ids: Tensor) -> None:
    model = adapted(lora_dropout=0.0, blc_weight=0.0).train()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.prepare_model_for_gradient_checkpointing(model)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    torch.testing.assert_close(gradients(), plain)
    assert plain.keys() == trainable(model)


@pytest.mark.parametrize("compiled_source", [False, True])
@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters")
def test_compiled_before_it_is_adapted(compiled_source: bool) -> None:
    source: Any = torch.compile(seeded(Mlp), backend="eager") if compiled_source else seeded(Mlp)
    inject_adapter_in_model(config("lin0"), source)
    plain = {name.replace("_orig_mod.", ""): t for name, t in get_peft_model_state_dict(source).items()}
    model = inject_adapter_in_model(config("lin0"), torch.compile(seeded(Mlp), backend="eager"))
    given = {f"_orig_mod.{name}": tensor for name, tensor in plain.items()}
    assert set(get_peft_model_state_dict(model)) == set(given)
    assert not set_peft_model_state_dict(model, given).unexpected_keys
    assert torch.equal(model(rows()), source(rows()))


def test_adapter_methods_of_transformers(tiny_llama: Maker, perturb: Maker, ids: Tensor) -> None:
    model = tiny_llama()
    base = model(ids).logits
    for name, experts in (("first", 3), ("second", 2)):
        model.add_adapter(LoraMoeConfig(lora_nums=experts, r=2), adapter_name=name)
        assert model.active_adapters() == [name]
    second = perturb(model)(ids).logits
    model.set_adapter("first")
    first = model(ids).logits
    assert not torch.allclose(first, second, atol=1e-2)
    model.set_adapter(["first", "second"])
    assert model.active_adapters() == ["first", "second"]
    assert {name.split(".")[-2] for name in trainable(model)} == {"first", "second"}
    model.delete_adapter("second")
    model.set_adapter("first")
    assert set(model.peft_config) == {"first"}
    assert torch.equal(model(ids).logits, first)
    model.disable_adapters()
    assert torch.equal(model(ids).logits, base)
    model.enable_adapters()
    assert torch.equal(model(ids).logits, first)


def test_save_and_load_by_transformers(tiny_llama: Maker, perturb: Maker, tmp_path: Path, ids: Tensor) -> None:
    source, model = tiny_llama(), tiny_llama()
    source.add_adapter(LoraMoeConfig(lora_nums=3, r=2))
    perturb(source).save_pretrained(tmp_path)
    wanted = source.eval()(ids).logits
    assert torch.equal(PeftModel.from_pretrained(tiny_llama(), tmp_path)(ids).logits, wanted)
    for name in ("one", "two"):
        model.load_adapter(str(tmp_path), adapter_name=name, low_cpu_mem_usage=name == "two")
        assert torch.equal(model.eval()(ids).logits, wanted)
        assert get_peft_model_state_dict(model, adapter_name=name).keys() == model.get_adapter_state_dict(name).keys()
