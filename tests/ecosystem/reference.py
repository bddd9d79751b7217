"""One optimizer step of a tool, computed again with transformers and this library alone.

With a learning rate of 0 a run saves the weights of its first step, so the loss that the tool logged can be
computed from the adapter that it saved.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import loramoe
from loramoe.data import IGNORE_INDEX, SftCollator

ROOT = Path(__file__).parents[2]
BASE = ROOT / "data" / "tiny_llama"
SAMPLES = ROOT / "data" / "tiny_data" / "train" / "train.json"
EXAMPLES = ROOT / "examples" / "integrations"


class MicroBatch(NamedTuple):
    """The loss of a micro-batch, the constraint's part of it, and its number of predicted tokens."""

    items: int
    loss: float
    constraint: float


def by_tokens(micro_batches: Sequence[MicroBatch]) -> float:
    """The loss of a step whose tokens count equally, as in transformers' Trainer."""
    return sum(micro.items * micro.loss for micro in micro_batches) / sum(micro.items for micro in micro_batches)


def first_samples(file: Path, count: int) -> list[dict[str, Any]]:
    """Writes the first samples of the tiny data, of both task types, to a file."""
    samples: list[dict[str, Any]] = json.loads(SAMPLES.read_text())[:count]
    assert {sample["task_type"] for sample in samples} == {0, 1}
    file.write_text(json.dumps(samples))
    return samples


def run(tool: str, *arguments: str) -> None:
    """Runs a command of this environment offline on the CPU, with this repository on PYTHONPATH."""
    settings = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(Path(sys.executable).with_name(tool)), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def load(adapter: Path) -> Any:
    """The base model with an adapter on it, loaded by PEFT."""
    from peft import PeftModel

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), adapter).eval()


def assert_trained(adapter: Path, lora_nums: int = 8) -> None:
    """The adapter has the examples' configuration, loads without the tool, and has learnt something in each layer."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    asked = {"peft_type": "LORAMOE", "lora_nums": lora_nums, "r": 4, "lora_alpha": 32, "blc_alpha": 0.1}
    assert config | asked == config
    experts = [weight for name, weight in load(adapter).named_parameters() if name.endswith(".B")]
    assert len(experts) == 12
    assert all(weight.abs().sum() > 0 for weight in experts)


@torch.no_grad()
def losses(adapter: Path, samples: Sequence[dict[str, Any]], batch_size: int) -> list[MicroBatch]:
    """The losses of samples in micro-batches of a size, with this adapter and without dropout."""
    model = load(adapter)
    micro_batches = []
    for start in range(0, len(samples), batch_size):
        batch = SftCollator(pad_token_id=3)(samples[start : start + batch_size])
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1]
        language_model = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX).item()
        constraint = model.peft_config["default"].blc_weight * loramoe.last_balance(model).constraint.item()
        assert constraint > 0.05, "the test would not notice if it were left out"
        micro_batches.append(MicroBatch(int((labels != IGNORE_INDEX).sum()), language_model + constraint, constraint))
    return micro_batches


def logged_losses(checkpoint: Path) -> list[float]:
    """The loss that a Trainer logged of each step."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]
