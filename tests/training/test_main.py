"""What the user can mend is told by `train.py` in one line; a bug keeps its traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import train as program


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
):
    monkeypatch.setattr(sys, "argv", ["train.py", *tiny_task.flags(tmp_path / "out", **change)])
    with pytest.raises(SystemExit) as ended:
        program.main()
    told = str(ended.value)  # a text as exit code is printed, and 1 returned
    assert told.startswith("train.py: ")
    assert message in told
    assert "\n" not in told


def test_a_bug_keeps_its_traceback(tiny_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(arguments: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(sys, "argv", ["train.py", *tiny_task.flags(tmp_path)])
    monkeypatch.setattr(program, "run", broken)
    with pytest.raises(ValueError, match="a bug"):
        program.main()
