"""The column `task_types`, which every adapted model declares, so that the Trainer keeps it; and label smoothing.

The trainers themselves run in tests/tuner/test_trainers.py and tests/ecosystem/test_trl.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraMoeConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM, Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutput
from transformers.trainer_pt_utils import LabelSmoother

from loramoe.compat.trainers import declare_task_types, extend_label_smoother, extend_sft_trainer

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}


@pytest.mark.parametrize(
    ("make", "by_transformers"),
    [
        (lambda: GPT2LMHeadModel(GPT2Config(**SIZE)), False),
        (lambda: MistralForCausalLM(MistralConfig(**SIZE, num_key_value_heads=1, intermediate_size=16)), True),
    ],
    ids=["GPT-2", "Mistral"],
)
def test_the_trainer_keeps_the_column(make: Any, by_transformers: bool, tmp_path: Path) -> None:
    model = make()
    if by_transformers:
        model.add_adapter(LoraMoeConfig())
    else:
        model = get_peft_model(model, LoraMoeConfig())
    trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    rows = Dataset.from_list([{"input_ids": [1, 2], "task_types": 0, "source": "book"}])
    assert trainer._remove_unused_columns(rows).column_names == ["input_ids", "task_types"]


def test_declare_task_types_once() -> None:
    class Closed:
        def forward(self, ids: int, labels: int = 0) -> None: ...

    for _ in range(2):
        declare_task_types(Closed)
    assert list(inspect.signature(Closed.forward).parameters) == ["self", "ids", "labels", "task_types"]


def test_label_smoothing_adds_the_constraint_once() -> None:
    extended = LabelSmoother.__call__
    extend_label_smoother(LabelSmoother)
    assert LabelSmoother.__call__ is extended
    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    smoother = LabelSmoother(epsilon=0.1)
    plain = extended.__wrapped__(smoother, {"logits": logits}, labels)
    outputs = CausalLMOutput(logits=logits)
    for without in (outputs, {"logits": logits}, (logits,)):
        assert torch.equal(smoother(without, labels), plain)
    outputs |= {"balance_loss": torch.tensor(0.5), "skips_first_label": True}
    assert torch.equal(smoother(outputs, labels), plain + 0.5)


@pytest.mark.parametrize(("items", "share"), [(None, 1.0), (20, 3 * 10 / 20)])
def test_a_loss_from_log_probabilities_gets_the_constraint(items: int | None, share: float) -> None:
    class Sft:
        args = SimpleNamespace(average_tokens_across_devices=True)
        accelerator = SimpleNamespace(num_processes=3)

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, count: Any = None) -> Any:
            return (torch.tensor(1.0), "outputs") if return_outputs else torch.tensor(1.0)

    @contextmanager
    def collect() -> Iterator[list[Tensor]]:
        yield [torch.tensor(0.5, requires_grad=True), torch.tensor(9.0)]

    extend_sft_trainer(Sft, collect)
    inputs = {"labels": torch.ones(2, 5)}
    assert Sft().compute_loss(None, inputs, num_items_in_batch=items).item() == 1 + 0.5 * share
    assert Sft().compute_loss(None, inputs, True, items)[1] == "outputs"
