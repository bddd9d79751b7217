"""The examples of docs/training.md are short, and each changes what it says it does."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from loramoe.training import parse, run_sft

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("custom_*.py"))


@pytest.fixture
def run_example(own_dataset_cache: None, tiny_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`run_example(name, argument, flag=value, …)`: runs a file as a user would; returns the evaluations it logged."""

    def run(name: str, *arguments: str, **flags: object) -> list[dict[str, Any]]:
        flags = {"max_steps": 2, "logging_steps": 1, **flags}
        monkeypatch.setattr(sys, "argv", [name, *arguments, *tiny_task.flags(tmp_path / name, **flags)])
        runpy.run_path(str(ROOT / f"examples/{name}.py"), run_name="__main__")
        history: list[dict[str, Any]] = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return history

    return run


def test_examples_are_short():
    assert all(len(file.read_text().splitlines()) < 40 for file in EXAMPLES)


def test_the_callback_names_a_layer(run_example, capsys: pytest.CaptureFixture[str]):
    run_example("custom_callback")
    assert "step 1: largest constraint" in capsys.readouterr().out


def test_the_metric_is_logged(run_example):
    history = run_example("custom_metric")
    accuracies = [entry["eval_token_accuracy"] for entry in history if "eval_token_accuracy" in entry]
    assert len(accuracies) == 2
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)


def test_the_loss_is_smaller_than_the_trainers(run_example, tiny_task, tmp_path: Path):
    focal = run_example("custom_loss")
    run_sft(parse(tiny_task.flags(tmp_path / "plain", max_steps=2, logging_steps=1)))
    plain = json.loads((tmp_path / "plain/trainer_state.json").read_text())["log_history"]
    first, usual = (next(entry["loss"] for entry in log if "loss" in entry) for log in (focal, plain))
    assert 0.8 * usual < first < usual  # each token's loss times 1 - p, of about 60 words


def test_the_format_replaces_the_training_samples(run_example, tmp_path: Path):
    file = tmp_path / "questions.tsv"
    file.write_text("".join(f"w1 w{n}\tw{n}\n" for n in range(4)))
    history = run_example("custom_format", str(file), max_steps=-1, num_train_epochs=2)
    assert history[-1]["epoch"] == history[-1]["step"] == 2  # 4 samples of one batch, and not 48
