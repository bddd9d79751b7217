"""TRL's SFTTrainer: its losses and weights are those of a plain loop with the constraint; and examples/trl_sft.py."""

from __future__ import annotations

import runpy
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from packaging.version import Version
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from loramoe.data import PackedCollator, SftCollator
from tests.plain_loop import InOrder, assert_same_run, make_model, make_rows, plain_loop, settings, word_tokenizer

trl = pytest.importorskip("trl", reason="TRL is not installed")
EXAMPLE = Path(__file__).parents[2] / "examples" / "trl_sft.py"


class OrderedSFTTrainer(InOrder, trl.SFTTrainer):
    """TRL's SFTTrainer, the samples in their order."""


def dynamic_fine_tuning(logits: Tensor, labels: Tensor) -> Tensor:
    """TRL's `dft` (arXiv 2508.05629): the negative log-likelihood of each token, weighted by its probability."""
    answer = labels != -100
    log_p = logits[answer].log_softmax(-1).gather(-1, labels[answer, None])
    return -(log_p.exp().detach() * log_p).mean()


SMOOTHED = pytest.param(
    {"gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1},
    {"accumulation": 2, "smoothing": 0.1},
    marks=pytest.mark.skipif(
        Version(trl.__version__) < Version("1.16"), reason="TRL 1.14 fails with label smoothing, for LoRA too"
    ),
)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        SMOOTHED,
        ({"loss_type": "dft"}, {"criterion": dynamic_fine_tuning}),
        ({"gradient_checkpointing": True, "data_collator": PackedCollator()}, {}),
    ],
    ids=["accumulation and smoothing", "dft", "checkpointing, packed"],
)
def test_the_losses_and_weights_of_a_plain_loop(
    options: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model()
    if "data_collator" in options:
        model.set_attn_implementation("eager")
    reference = plain_loop(model, make_rows(), 2, **{"accumulation": 1, **expected})
    flags = {
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "bf16": False,
        "gradient_checkpointing": False,
        **options,
    }
    collator = flags.pop("data_collator", SftCollator(0))
    trainer = OrderedSFTTrainer(
        model,
        trl.SFTConfig(**settings(tmp_path, **flags)),
        train_dataset=Dataset.from_list(make_rows()),
        data_collator=collator,
        processing_class=word_tokenizer(),
    )
    assert_same_run(trainer, reference)


@pytest.mark.slow
@pytest.mark.usefixtures("own_dataset_cache")
def test_the_example_trains_an_adapter_that_loads(tiny_task, tmp_path: Path) -> None:
    arguments = {"base": str(tiny_task.base), "rows": str(tiny_task.train_dir), "output": str(tmp_path), "steps": 30}
    trainer = runpy.run_path(str(EXAMPLE))["main"](Namespace(**arguments))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.2
    ids = torch.arange(4, 24).reshape(2, 10)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_task.base), tmp_path).eval()
    assert torch.equal(loaded(input_ids=ids).logits, trainer.model.cpu().eval()(input_ids=ids).logits)
