"""Errors that users can fix are one line of `loramoe train`; a bug keeps its traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loramoe.cli import main
from loramoe.training import main as program
from loramoe.training.callbacks import NonFiniteError, StoppedError
from loramoe.utils import SaveError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter": "/nowhere"}, "adapter=/nowhere holds no adapter"),
        ({"dataset_dir": "/nowhere"}, "/nowhere"),
        ({"resume_from_checkpoint": "true"}, "no complete checkpoint in"),
        ({"lora_rnak": 4}, "unknown flag --lora_rnak"),
    ],
)
def test_a_users_mistake_is_one_line(
    change: dict[str, object],
    message: str,
    own_dataset_cache: None,
    tiny_task,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert main(["train", *tiny_task.flags(tmp_path / "out", **change)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("loramoe train: ")]
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (StoppedError("SIGTERM"), 75, "SIGTERM"),
        (SaveError("disk full"), 1, "disk full"),
        (NonFiniteError("the loss is nan"), 1, "the loss is nan"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), 1, "out of memory (CUDA out of memory. Tried). Try"),
    ],
)
def test_how_a_run_ends_is_in_its_code(
    error: Exception,
    code: int,
    message: str,
    tiny_task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def end(arguments: object) -> None:
        raise error

    monkeypatch.setattr(program, "run_sft", end)
    assert main(["train", *tiny_task.flags(tmp_path)]) == code
    printed = capsys.readouterr().err
    assert printed.startswith(f"loramoe train: {message}")
    assert printed.count("\n") == 1


def test_a_bug_keeps_its_traceback(
    tiny_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(arguments: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(program, "run_sft", broken)
    assert main(["train", *tiny_task.flags(tmp_path)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert printed.endswith("ValueError: a bug\n")


def test_the_command_lists_its_subcommands(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    assert "train" in capsys.readouterr().out
    assert main(["trian"]) == 2
    assert "unknown command 'trian'" in capsys.readouterr().err
