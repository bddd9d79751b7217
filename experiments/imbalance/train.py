"""Trains the embedded model with the constraint off, as in the paper, and turned round, and keeps the curves.

Everything but the constraint is the same in all arms, two apart, which learn ten times as fast: the rows and their
order, the start of the adapter, the dropout. The learning rate stays constant, so that a curve flattens because the
routers have settled and not because the steps end.
"""

from __future__ import annotations

import json
import platform
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from loramoe.report import Shares
from tqdm import tqdm

from benchmarks.harness import hardware
from loramoe.training import parse, run_sft
from loramoe.utils import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
ARMS: dict[str, dict[str, object]] = {
    "off": {"blc_weight": 0, "blc_alpha": 0},  # with 0, what is logged as `blc` is the squared CoV of Q itself
    "paper": {"blc_weight": 0.1, "blc_alpha": 0.1, "blc_target": "paper"},
    "match": {"blc_weight": 0.1, "blc_alpha": 0.1, "blc_target": "match"},
    # Ten times the rate, at which this model comes apart: how far the routers can go, and whether they are held.
    "off_x10": {"blc_weight": 0, "blc_alpha": 0, "learning_rate": 3e-2},
    "paper_x10": {"blc_weight": 0.1, "blc_alpha": 0.1, "blc_target": "paper", "learning_rate": 3e-2},
}
FLAGS: dict[str, object] = {
    "model_name_or_path": "data/tiny_llama",
    "dataset_dir": "data/tiny_data/train",
    "validation_file": "data/tiny_data/test.json",
    "max_seq_length": 256,
    "lora_nums": 8,
    "lora_rank": 4,
    "lora_alpha": 32,
    "learning_rate": 3e-3,  # the launcher's for this model
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 50,
    "max_steps": 500,  # five times through the 800 rows
    "logging_steps": 20,
    "logging_first_step": "true",
    "eval_on_start": "false",
    "save_strategy": "no",
    "use_cpu": "true",
    "disable_tqdm": "true",
}
KEPT = ("step", "loss", "blc", "cov", "share/", "routing/cov/")  # beginnings of the names of what a curve keeps


def train_missing() -> None:
    """Train every arm with every seed that has no result yet; an interrupted grid goes on where it was."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # its matrices are too small to share out among threads
    todo = [(arm, seed) for arm in ARMS for seed in SEEDS if not result_file(arm, seed).exists()]
    for arm, seed in tqdm(todo, desc="runs", unit="run"):
        write_json(result_file(arm, seed), measure(arm, seed))


def result_file(arm: str, seed: int) -> Path:
    """Where the result of one run lies.

    Args:
        arm: One of ARMS.
        seed: One of SEEDS.

    Returns:
        The file.
    """
    return RESULTS / f"{arm}_seed{seed}.json"


def measure(arm: str, seed: int) -> dict[str, Any]:
    """Train once.

    Args:
        arm: One of ARMS.
        seed: Of the adapter's start, the order of the rows, and dropout.

    Returns:
        The flags, the curve, the CoV of each linear and the loss on the test rows at the end, and what it ran on.
    """
    values = {**FLAGS, **ARMS[arm], "seed": seed}
    paths = {name: ROOT / str(values[name]) for name in ("model_name_or_path", "dataset_dir", "validation_file")}
    with tempfile.TemporaryDirectory() as folder:
        flags = values | paths | {"output_dir": folder}
        metrics = run_sft(parse([word for name, value in flags.items() for word in (f"--{name}", str(value))]))
        history = json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]
        shares = shares_of(json.loads((Path(folder) / "expert_shares.json").read_text()))
    return {
        "arm": arm,
        "seed": seed,
        "flags": values,
        "curve": [{k: v for k, v in entry.items() if k.startswith(KEPT)} for entry in history if "loss" in entry],
        "test": {
            "loss": metrics["after"]["loss"],
            "cov": dict(zip(shares.linears, shares.cov().tolist(), strict=True)),
        },
        "date": date.today().isoformat(),
        "hardware": hardware("cpu"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
    }


def shares_of(written: dict[str, Any]) -> Shares:
    """The shares that a run has written into `expert_shares.json`.

    Args:
        written: What the file holds.

    Returns:
        The shares.
    """
    tensors = {
        name: torch.tensor(written[name], dtype=torch.float64) for name in ("gate_TLE", "tokens_T", "constraint_L")
    }
    plain = {name: tuple(written[name]) for name in ("task_types", "linears", "expert_types")}
    return Shares(constraint=written["constraint"], **plain, **tensors)
