"""TRL's SFTTrainer with the constraint: its losses and weights are those of a plain loop; and the example to copy."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from loramoe.data import PackedCollator, SftCollator
from tests.plain_loop import (
    InOrder,
    assert_same_run,
    make_config,
    make_model,
    make_rows,
    plain_loop,
    settings,
    word_tokenizer,
)

trl = pytest.importorskip("trl", reason="TRL is not installed")
EXAMPLE = Path(__file__).parents[2] / "examples" / "trl_sft.py"


class OrderedSFTTrainer(InOrder, trl.SFTTrainer):
    """TRL's SFTTrainer, the rows in their order."""


def sft(model: Any, tmp_path: Path, **options: Any) -> Any:
    """A trainer of `make_rows` as the plain loop would have it."""
    peft_config = options.pop("peft_config", None)
    collator = options.pop("data_collator", SftCollator(0))
    prepared = {"dataset_kwargs": {"skip_prepare_dataset": True}, "bf16": False, "gradient_checkpointing": False}
    return OrderedSFTTrainer(
        model,
        trl.SFTConfig(**settings(tmp_path, **prepared | options)),
        train_dataset=Dataset.from_list(make_rows()),
        data_collator=collator,
        processing_class=word_tokenizer(),
        peft_config=peft_config,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_losses_and_weights_of_a_plain_loop(accumulation: int, smoothing: float, tmp_path: Path) -> None:
    model = make_model()
    expected = plain_loop(model, make_rows(), 2, accumulation, smoothing)
    options = {"gradient_accumulation_steps": accumulation, "label_smoothing_factor": smoothing}
    assert_same_run(sft(model, tmp_path, **options), expected)


def dynamic_fine_tuning(logits: Tensor, labels: Tensor) -> Tensor:
    """TRL's `dft` (arXiv 2508.05629): the negative log-likelihood of each token, weighted by its probability."""
    of_answer = labels != -100
    log_probs = logits[of_answer].log_softmax(-1).gather(-1, labels[of_answer, None])
    return -(log_probs.exp().detach() * log_probs).mean()


@pytest.mark.parametrize(("loss_type", "criterion"), [("nll", None), ("dft", dynamic_fine_tuning)])
def test_each_of_its_losses_contains_the_constraint(loss_type: str, criterion: Any, tmp_path: Path) -> None:
    model = make_model()
    expected = plain_loop(model, make_rows(), 2, 2, criterion=criterion)
    assert_same_run(sft(model, tmp_path, gradient_accumulation_steps=2, loss_type=loss_type), expected)


def test_packed_by_our_collator(tmp_path: Path) -> None:
    model = make_model()
    model.set_attn_implementation("eager")
    expected = plain_loop(model, make_rows(), 2, 2)
    assert_same_run(sft(model, tmp_path, gradient_accumulation_steps=2, data_collator=PackedCollator()), expected)


def test_the_adapter_may_be_left_to_trl(tmp_path: Path) -> None:
    trainer = sft(make_model().unload(), tmp_path, peft_config=make_config())
    model = make_model()
    model.load_state_dict(trainer.model.state_dict())
    assert_same_run(trainer, plain_loop(model, make_rows(), 2, 1))


def test_with_gradient_checkpointing_which_is_its_default(tmp_path: Path) -> None:
    model = make_model()
    expected = plain_loop(model, make_rows(), 2, 2)
    assert_same_run(sft(model, tmp_path, gradient_accumulation_steps=2, gradient_checkpointing=True), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("own_dataset_cache")
def test_the_example_trains_and_its_adapter_loads_again(tiny_task, tmp_path: Path) -> None:
    example = load_example()
    arguments = {"base": str(tiny_task.base), "rows": str(tiny_task.train_dir), "output": str(tmp_path), "steps": 30}
    trainer = example.main(Namespace(**arguments))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.2
    ids = torch.arange(4, 24).reshape(2, 10)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_task.base), tmp_path).eval()
    assert torch.equal(loaded(input_ids=ids).logits, trainer.model.cpu().eval()(input_ids=ids).logits)


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trl_sft", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
