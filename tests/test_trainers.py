"""The constraint under transformers' Trainer, with label smoothing too, compared with a plain loop.

That of TRL is in tests/ecosystem/test_trl.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from loramoe.data import SftCollator
from tests.plain_loop import OrderedTrainer, assert_same_run, make_model, make_rows, plain_loop, settings


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


def test_trainer_evaluates_the_language_model_alone(model: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    batch = SftCollator(0)(rows)
    with torch.no_grad():
        expected = model.eval()(**{k: v for k, v in batch.items() if k != "task_types"}).loss.item()
    args = TrainingArguments(**settings(tmp_path, per_device_eval_batch_size=8))
    trainer = Trainer(model, args, eval_dataset=Dataset.from_list(rows), data_collator=SftCollator(0))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_transformers_door_has_the_trainer_keep_the_column(
    model: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    expected = plain_loop(model, rows, 2, 1)
    args = TrainingArguments(**settings(tmp_path, remove_unused_columns=True))
    trainer = OrderedTrainer(model, args, train_dataset=Dataset.from_list(rows), data_collator=SftCollator(0))
    assert_same_run(trainer, expected)


def test_the_smoother_leaves_other_models_alone() -> None:
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, 2, -100], [0, 4, 3]])
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    for output in ({"logits": logits}, (logits,)):
        torch.testing.assert_close(LabelSmoother(epsilon=0.1)(output, labels), expected)
