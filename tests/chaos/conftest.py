"""What every test of failures needs: a run that nothing disturbs, and someone who disturbs the others."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramoe.training.checkpoint import ADAPTER, METRICS
from tests.chaos.victim import Killer

FLAGS: dict[str, object] = {"max_steps": 8, "save_steps": 2, "logging_steps": 1, "lora_dropout": 0.1, "blc_weight": 0.5}
FLAGS |= {"eval_strategy": "steps", "eval_steps": 4, "save_total_limit": 2}


@pytest.fixture
def killer(
    own_dataset_cache: None, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Killer:
    """Kills runs at moments drawn from CHAOS_SEED and the name of the test."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Killer(random.Random(f"{os.environ['CHAOS_SEED']} {request.node.name}"), tmp_path)


@pytest.fixture
def flags(tiny_task: Any) -> Callable[..., list[str]]:
    """Flags of a run of 8 steps with dropout, constraint, evaluations and four checkpoints."""
    return lambda output_dir, **changes: tiny_task.flags(output_dir, **{**FLAGS, **changes})


@pytest.fixture(scope="session")
def undisturbed() -> dict[str, dict[str, object]]:
    """What runs without a failure have left, by name: each worker of the tests makes its own, once."""
    return {}


@pytest.fixture
def whole(killer: Killer, flags: Callable[..., list[str]], undisturbed: dict, tmp_path: Path) -> dict:
    """The trajectory of the run that nothing disturbed."""
    if "whole" not in undisturbed:
        code, log = killer.start(flags(tmp_path / "whole"), tmp_path / "whole")
        assert code == 0, log[-3000:]
        undisturbed["whole"] = trajectory(tmp_path / "whole")
    return undisturbed["whole"]


def trajectory(output_dir: Path) -> dict[str, object]:
    """All that a run has computed, to the last bit: its adapter, its log of every step, its results."""
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return {
        "weights": (output_dir / ADAPTER / "adapter_model.safetensors").read_bytes(),
        "steps": [(entry["step"], entry["loss"], entry["blc"]) for entry in history if "blc" in entry],
        "evaluations": {(e["step"], e["eval_loss"], e["eval_blc"]) for e in history if "eval_loss" in e},
        "metrics": json.loads((output_dir / METRICS).read_text()),
    }
