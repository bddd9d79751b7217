"""What the user can mend is told by `train.py` in one line; a bug keeps its traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import train as program
from loramoe.training.callbacks import NonFiniteError, StoppedError
from loramoe.utils import SaveError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_nums": 1}, "lora_nums must be at least 2 for a balancing constraint; got lora_nums=1"),
        ({"peft_path": "/nowhere"}, "peft_path=/nowhere holds no adapter"),
        ({"model_name_or_path": "/nowhere"}, "the tokenizer /nowhere cannot be loaded"),
        ({"dataset_dir": "/nowhere"}, "/nowhere"),
        ({"prompt_template": "chat"}, "needs tokenizer.chat_template"),
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
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(sys, "argv", ["train.py", *tiny_task.flags(tmp_path / "out", **change)])
    assert program.main() == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert len(told) == 1
    assert message in told[0]


@pytest.mark.parametrize(
    ("error", "code"),
    [(StoppedError("SIGTERM"), 75), (SaveError("disk full"), 1), (NonFiniteError("the loss is nan"), 1)],
)
def test_how_a_run_ends_is_told_by_its_code(
    error: Exception,
    code: int,
    tiny_task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def ending(arguments: object) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["train.py", *tiny_task.flags(tmp_path)])
    monkeypatch.setattr(program, "run", ending)
    assert program.main() == code
    assert capsys.readouterr().err == f"train.py: {error}\n"


def test_a_bug_keeps_its_traceback(
    tiny_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(arguments: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(sys, "argv", ["train.py", *tiny_task.flags(tmp_path)])
    monkeypatch.setattr(program, "run", broken)
    assert program.main() == 1
    told = capsys.readouterr().err
    assert told.startswith("Traceback")
    assert told.endswith("ValueError: a bug\n")
