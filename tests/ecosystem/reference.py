"""One optimizer step of a tool, computed again with transformers and this library alone.

A run with a learning rate of 0 saves the weights that its first step began with, so that the loss that the tool logged
can be computed from the adapter that it saved.
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
ROWS = ROOT / "data" / "tiny_data" / "train" / "train.json"


class MicroBatch(NamedTuple):
    """What the loss of a micro-batch consists of, and how many tokens are predicted in it."""

    items: int
    language_model: float
    constraint: float

    @property
    def loss(self) -> float:
        """The language model's, and the weighted constraint."""
        return self.language_model + self.constraint


def by_tokens(micro_batches: Sequence[MicroBatch]) -> float:
    """The loss of a step whose tokens count equally, as transformers' Trainer has it."""
    return sum(micro.items * micro.loss for micro in micro_batches) / sum(micro.items for micro in micro_batches)


def some_rows(file: Path, count: int) -> list[dict[str, Any]]:
    """Writes the first rows of the tiny data to a file of their own; both task types are among them."""
    rows: list[dict[str, Any]] = json.loads(ROWS.read_text())[:count]
    assert {row["task_type"] for row in rows} == {0, 1}
    file.write_text(json.dumps(rows))
    return rows


def run(tool: str, *arguments: str) -> str:
    """Runs a command of this environment offline on the CPU, as a user with this repository on PYTHONPATH would."""
    settings = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(Path(sys.executable).with_name(tool)), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def load(adapter: Path) -> Any:
    """The base model with an adapter on it, as PEFT loads it once `loramoe` is imported."""
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    return PeftModel.from_pretrained(base, adapter).eval()


@torch.no_grad()
def losses(adapter: Path, samples: Sequence[dict[str, Any]], batch_size: int) -> list[MicroBatch]:
    """The losses of samples in micro-batches of a size, with this adapter and without dropout."""
    model = load(adapter)
    weight = model.peft_config["default"].blc_weight
    micro_batches = []
    for start in range(0, len(samples), batch_size):
        batch = SftCollator(pad_token_id=3)(samples[start : start + batch_size])
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1]
        language_model = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)
        balance = loramoe.last_balance(model)
        assert balance is not None
        items = int((labels != IGNORE_INDEX).sum())
        micro_batches.append(MicroBatch(items, language_model.item(), weight * balance.constraint.item()))
    return micro_batches


def logged_losses(checkpoint: Path) -> list[float]:
    """The losses that a Trainer logged, of each step."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]
