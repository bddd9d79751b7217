"""One finished run for all tests that only look at what a run leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loramoe.training.checkpoint import ADAPTER

# 12 batches make an epoch, so that the last checkpoint is of the second; dropout draws from the restored generator.
FLAGS: dict[str, object] = {"max_steps": 15, "save_steps": 5, "eval_strategy": "steps", "eval_steps": 5}
FLAGS |= {"blc_weight": 0.5, "lora_dropout": 0.2, "logging_steps": 5, "per_device_eval_batch_size": 5}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter of a run or checkpoint."""
    return load_file(folder / ADAPTER / "adapter_model.safetensors")


def history(folder: Path) -> list[dict[str, Any]]:
    """All that a run has logged."""
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def assert_same_weights(one: Path, other: Path, **tolerance: float) -> None:
    """Bit for bit, unless there is a tolerance."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], **(tolerance or {"rtol": 0, "atol": 0}))


@dataclass(frozen=True)
class Finished:
    """What a run returned and left; nobody may write there."""

    folder: Path
    metrics: dict[str, dict[str, float]]
    balances: list[tuple[bool, Any]]


@pytest.fixture(scope="session")
def finished(tiny_task, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of 15 steps with constraint, evaluations, recall and checkpoints."""
    import datasets

    import loramoe
    from loramoe.training import parse, run_sft
    from loramoe.training import trainer as module

    folder, balances = tmp_path_factory.mktemp("finished"), []

    def last_balance(model: torch.nn.Module) -> Any:
        balances.append((model.training, loramoe.last_balance(model)))
        return balances[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tiny_task.cache)
        patch.setattr(module, "last_balance", last_balance)
        metrics = run_sft(parse(tiny_task.flags(folder, recall_file=tiny_task.recall_file, **FLAGS)))
    return Finished(folder, metrics, balances)
