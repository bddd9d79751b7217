"""A file of flags becomes the command line that would have said the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramoe.training.arguments import TrainArguments
from loramoe.training.flag_file import flags_of_file


def flags(tmp_path: Path, text: str, name: str = "run.yaml") -> list[str]:
    file = tmp_path / name
    file.write_text(text)
    return flags_of_file(file, TrainArguments)


def test_values_lists_and_mappings(tmp_path: Path):
    text = """
    learning_rate: 2e-4
    do_train: true
    peft_path: null
    trainable: [up_proj, down_proj]
    label_names: [labels, task_types]
    lr_scheduler_kwargs: {num_cycles: 2}
    """
    assert flags(tmp_path, text) == [
        *("--learning_rate", "2e-4"),
        *("--do_train", "True"),
        *("--trainable", "up_proj,down_proj"),
        *("--label_names", "labels", "task_types"),
        *("--lr_scheduler_kwargs", '{"num_cycles": 2}'),
    ]


def test_json(tmp_path: Path):
    assert flags(tmp_path, '{"lora_rank": 2}', "run.json") == ["--lora_rank", "2"]


def test_no_such_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no file of flags at .*none.yaml"):
        flags_of_file(tmp_path / "none.yaml", TrainArguments)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "neither JSON nor YAML"), ("- a", "expected one mapping of flags to values, got list")]
)
def test_no_flags_in_it(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        flags(tmp_path, text)
