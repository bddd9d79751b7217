"""What the end of a run leaves about its experts, from the numbers of its last evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from loramoe.analysis.report import main
from loramoe.training import summary

ROOT = Path(__file__).parents[2]


def numbers(folder: Path, name: str = "report/experts.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


@pytest.fixture
def finished(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two steps with its report, that logs to TensorBoard and offline to Weights & Biases."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_RUN_ID", "run")
    train(tmp_path / "run", max_steps=2, learning_rate=0.1, experts_page="true", report_to="tensorboard,wandb")
    wandb.finish()
    wandb.teardown()  # it keeps the settings of its first run in a process
    return tmp_path / "run"


@pytest.mark.slow  # wandb starts a process
def test_log_report_command_and_card_have_the_same_numbers(
    finished: Path, tiny_task, capsys: pytest.CaptureFixture[str]
):
    report = numbers(finished)
    assert (report["adapter"], report["base_model"], report["data"]) == ("sft_lora_model", "base", "test.json")
    share_TG = np.array(report["gate_TLE"]).mean(axis=1) @ np.equal.outer(report["expert_types"], (0, 1))
    logged = [entry for entry in numbers(finished, "trainer_state.json")["log_history"] if "eval_loss" in entry][-1]
    assert logged["eval_share/type1/group0"] == pytest.approx(share_TG[1, 0])
    flags = ["--adapter", str(finished / "sft_lora_model"), "--file", str(tiny_task.test_file)]
    assert main([*flags, "--output_dir", str(finished / "again")]) == 0
    again = numbers(finished, "again/experts.json")
    np.testing.assert_allclose(again["gate_TLE"], report["gate_TLE"], rtol=1e-5)
    np.testing.assert_allclose(again["entropy_TL"], report["entropy_TL"], rtol=1e-5)
    card = ModelCard.load(finished / "sft_lora_model" / "README.md").text
    assert report["conclusion"] in card
    assert "| training data | samples read: 48" in card
    for private in (finished, tiny_task.base.parent, ROOT, Path.home()):
        assert str(private) not in card
    # The figures are in both trackers.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    images = set()
    for folder in (finished / "runs").iterdir():
        images |= set(EventAccumulator(str(folder)).Reload().Tags()["images"])
    assert images == {"experts_groups", "experts_gates"}
    media = {file.name.split("_")[1] for file in finished.parent.glob("wandb/*/files/media/images/experts_*.png")}
    assert media == {"groups", "gates"}


def test_a_report_that_fails_costs_nothing_else(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, capsys):
    monkeypatch.setattr(summary, "write_report", lambda *_, **__: 1 / 0)
    train(tmp_path, max_steps=1, experts_page="true")
    assert "no report on the experts: ZeroDivisionError" in caplog.text
    assert "before" in numbers(tmp_path, "metrics.json")
    assert "Separation" in capsys.readouterr().out
    assert (tmp_path / "sft_lora_model" / "README.md").is_file()


def test_a_single_expert_has_none(train, tmp_path: Path):
    train(tmp_path, max_steps=1, experts_page="true", lora_nums=1, blc_weight=0)
    assert not (tmp_path / "report").exists()
    assert (tmp_path / "sft_lora_model" / "README.md").is_file()


@pytest.mark.slow
def test_an_earlier_report_is_removed_when_a_run_goes_on(train, tmp_path: Path):
    train(tmp_path, max_steps=1, save_steps=1, experts_page="true")
    (tmp_path / "report" / "notes.txt").touch()
    train(tmp_path, max_steps=1, save_steps=1, resume_from_checkpoint="true", experts_page="false")
    assert [file.name for file in (tmp_path / "report").iterdir()] == ["notes.txt"]
