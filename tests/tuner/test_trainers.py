"""The constraint under transformers' Trainer, with label smoothing too, compared with a plain loop.

That of TRL is in tests/ecosystem/test_trl.py.
"""

from __future__ import annotations

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
from loramoe.balance.constraint import share_of_step
from loramoe.compat.trainers import skips_first_label
from loramoe.data import SftCollator
from tests.plain_loop import OrderedTrainer, assert_same_run, make_model, make_rows, plain_loop, settings

CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


@pytest.mark.parametrize(
    ("accumulation", "options"), [(4, {}), (2, CHECKPOINTING), (1, {"label_smoothing_factor": 0.1})]
)
def test_trainer(accumulation: int, options: dict[str, Any], tmp_path: Path) -> None:
    model, rows = make_model(), make_rows()
    expected = plain_loop(model, rows, 2, accumulation, options.get("label_smoothing_factor", 0.0))
    args = TrainingArguments(**settings(tmp_path, gradient_accumulation_steps=accumulation, **options))
    trainer = OrderedTrainer(model, args, train_dataset=Dataset.from_list(rows), data_collator=SftCollator(0))
    assert_same_run(trainer, expected)


def own_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Any:
    logits = outputs.logits[:, :-1].flatten(0, 1)
    summed = cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    return summed / num_items_in_batch + loramoe.balance_loss(outputs, labels, num_items_in_batch)


def test_trainer_with_a_loss_of_one_s_own(tmp_path: Path) -> None:
    model, rows = make_model(), make_rows()
    expected = plain_loop(model, rows, 2, 4)
    args = TrainingArguments(**settings(tmp_path, gradient_accumulation_steps=4))
    data = {"train_dataset": Dataset.from_list(rows), "data_collator": SftCollator(0)}
    trainer = OrderedTrainer(model, args, compute_loss_func=own_loss, eval_dataset=data["train_dataset"], **data)
    assert_same_run(trainer, expected)
    assert "eval_loss" in trainer.evaluate()


@pytest.mark.parametrize("head", ["LlamaForCausalLM", "LlamaForSequenceClassification", "BertForMaskedLM"])
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
