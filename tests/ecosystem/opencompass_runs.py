"""What the tests of OpenCompass share: how it is run, and where it puts what it finds."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGURATIONS = ROOT / "evaluation" / "opencompass"
BASE = ROOT / "data" / "tiny_llama"
ADAPTER = ROOT / "output" / "tiny_llama" / "sft_lora_model"

needs_opencompass = pytest.mark.skipif(
    importlib.util.find_spec("opencompass") is None,
    reason="opencompass is not installed: scripts/ecosystem/opencompass.sh",
)
needs_adapter = pytest.mark.skipif(not ADAPTER.exists(), reason=f"no adapter at {ADAPTER}: run_loramoe.sh trains it")


def transformers_4() -> bool:
    """Whether the installed transformers still has what OpenCompass 0.5.4 batches with."""
    import transformers

    return transformers.__version__.startswith("4.")


def opencompass(config: Path, folder: Path, *arguments: str, **variables: str) -> Path:
    """Runs OpenCompass in a folder of its own, and gives the folder of its results."""
    folder.mkdir(parents=True, exist_ok=True)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "opencompass.cli.main", str(config), "-w", str(folder / "runs"), *arguments]
    environment = {**os.environ, **offline, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (results,) = (folder / "runs").iterdir()
    return results


def predictions(results: Path, model: str, dataset: str) -> list[dict[str, Any]]:
    """What a model answered, row by row, with the prompts as it was given them."""
    rows = json.loads((results / "predictions" / model / f"{dataset}.json").read_text(encoding="utf-8"))
    return [rows[str(number)] for number in range(len(rows))]


def score(results: Path, model: str, dataset: str) -> float:
    """Percentage of right answers."""
    found = json.loads((results / "results" / model / f"{dataset}.json").read_text(encoding="utf-8"))
    return float(found["accuracy"] if "accuracy" in found else found["score"])
