"""The constraint under transformers' Trainer, with label smoothing too, compared with a plain loop.

That of TRL is in tests/ecosystem/test_trl.py.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

import loramoe
from loramoe.balance import share_of_step
from loramoe.compat.transformers import skips_first_label
from loramoe.data import SftCollator
from tests.plain_loop import (
    OrderedTrainer,
    assert_same_run,
    label_tokens,
    make_model,
    make_rows,
    plain_loop,
    settings,
    weights,
)


@pytest.fixture
def model() -> Any:
    return make_model()


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return make_rows()


@pytest.mark.parametrize("accumulation", [1, 4])
def test_trainer(accumulation: int, model: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = plain_loop(model, rows, 2, accumulation)
    args = TrainingArguments(**settings(tmp_path, gradient_accumulation_steps=accumulation))
    trainer = OrderedTrainer(model, args, train_dataset=Dataset.from_list(rows), data_collator=SftCollator(0))
    assert_same_run(trainer, expected)


def test_trainer_with_gradient_checkpointing(model: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = plain_loop(model, rows, 2, 2)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    args = TrainingArguments(**settings(tmp_path, gradient_accumulation_steps=2))
    trainer = OrderedTrainer(model, args, train_dataset=Dataset.from_list(rows), data_collator=SftCollator(0))
    assert_same_run(trainer, expected)


def test_trainer_with_label_smoothing(model: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = plain_loop(model, rows, 2, 1, smoothing=0.1)
    args = TrainingArguments(**settings(tmp_path, label_smoothing_factor=0.1))
    trainer = OrderedTrainer(model, args, train_dataset=Dataset.from_list(rows), data_collator=SftCollator(0))
    assert_same_run(trainer, expected)


def own_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Any:
    logits = outputs.logits[:, :-1].flatten(0, 1)
    summed = cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    return summed / num_items_in_batch + loramoe.balance_loss(outputs, labels, num_items_in_batch)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_trainer_with_a_loss_of_one_s_own(
    accumulation: int, model: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    expected = plain_loop(model, rows, 2, accumulation)
    args = TrainingArguments(**settings(tmp_path, gradient_accumulation_steps=accumulation))
    data = {"train_dataset": Dataset.from_list(rows), "data_collator": SftCollator(0)}
    trainer = OrderedTrainer(model, args, compute_loss_func=own_loss, eval_dataset=data["train_dataset"], **data)
    assert_same_run(trainer, expected)
    assert "eval_loss" in trainer.evaluate()


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_loss_of_one_s_own_has_the_gradient_of_the_model_s(
    accumulation: int, model: Any, rows: list[dict[str, Any]]
) -> None:
    """The same micro-batch again and again: the step's gradient is that of the micro-batch alone."""
    batch = SftCollator(0)(rows[:3])
    labels = batch["labels"]
    model.train()(**batch).loss.backward()
    routers = {name: p for name, p in weights(model).items() if "router" in name}
    expected = {name: p.grad.clone() for name, p in routers.items()}
    model.zero_grad()
    items = accumulation * label_tokens(batch)
    del batch["labels"]
    for _ in range(accumulation):
        own_loss(model(**batch, num_items_in_batch=items), labels, items).backward()
    torch.testing.assert_close({name: p.grad for name, p in routers.items()}, expected)


def test_a_trainer_that_smooths_labels_tells_of_missing_task_types(
    model: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    untyped = Dataset.from_list(rows).remove_columns("task_types")
    args = TrainingArguments(**settings(tmp_path, label_smoothing_factor=0.1))
    trainer = Trainer(model, args, train_dataset=untyped, eval_dataset=untyped, data_collator=SftCollator(0))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*came without task_types")
        trainer.evaluate()
    with pytest.warns(UserWarning, match="this training batch came without task_types") as told:
        trainer.train()
    assert sum("came without task_types" in str(warning.message) for warning in told) == 1


def test_trainer_evaluates_the_language_model_alone(model: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    batch = SftCollator(0)(rows)
    with torch.no_grad():
        expected = model.eval()(**{k: v for k, v in batch.items() if k != "task_types"}).loss.item()
    args = TrainingArguments(**settings(tmp_path, per_device_eval_batch_size=8))
    trainer = Trainer(model, args, eval_dataset=Dataset.from_list(rows), data_collator=SftCollator(0))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "head", ["LlamaForCausalLM", "LlamaForSequenceClassification", "BertForMaskedLM", "GPT2LMHeadModel", "LlamaModel"]
)
def test_labels_are_counted_as_the_trainer_does(head: str, tmp_path: Path) -> None:
    kind = getattr(transformers, head)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    made = kind(kind.config_class(vocab_size=8, **sizes))
    labels = torch.ones(2, 5, dtype=torch.long)
    trainer = Trainer(made, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    trainer.model_accepts_loss_kwargs = True
    items = trainer._get_num_items_in_batch([{"labels": labels}] * 2, torch.device("cpu"))
    assert share_of_step({"labels": labels, "num_items_in_batch": items}, skips_first_label(made)) == 0.5


def test_what_has_no_type_of_loss_shifts_nothing() -> None:
    assert not skips_first_label(nn.Linear(2, 2))
