"""A run on streamed rows takes the steps of one on stored rows, and leaves no tokens on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loramoe.training.checkpoint import ADAPTER
from loramoe.utils import UsageError


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "blc" in entry]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"packing": "true"},
        {"validation_file": None, "validation_split_percentage": 25, "max_steps": 12},
        {"dataloader_num_workers": 2},
    ],
)
def test_the_trajectory_is_that_of_stored_rows(flags: dict[str, object], train, tmp_path: Path):
    for streaming in ("false", "true"):
        train(tmp_path / streaming, streaming=streaming, logging_steps=1, lora_dropout=0.1, **flags)
    assert losses(tmp_path / "true") == losses(tmp_path / "false")
    stored, streamed = (
        load_file(tmp_path / name / ADAPTER / "adapter_model.safetensors") for name in ("false", "true")
    )
    assert all(torch.equal(stored[name], streamed[name]) for name in stored)


def test_nothing_is_tokenised_before_it_is_needed(train, tiny_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    train(tmp_path / "out", streaming="true", max_steps=2)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_a_streamed_run_resumes_at_the_right_row(train, tmp_path: Path):
    flags = {"streaming": "true", "lora_dropout": 0.1, "logging_steps": 1, "max_steps": 16, "save_steps": 5}
    train(tmp_path / "whole", **flags)  # 12 steps an epoch: step 15 is in the second
    train(tmp_path / "whole" / "again", **flags, resume_from_checkpoint=tmp_path / "whole" / "checkpoint-15")
    again = json.loads((tmp_path / "whole" / "again" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in again if "blc" in entry] == list(range(1, 17))
    assert losses(tmp_path / "whole" / "again") == losses(tmp_path / "whole")


def test_lengths_are_not_known_in_advance(train, tmp_path: Path):
    with pytest.raises(UsageError, match=r"streaming and group_by_length exclude each other: .*Leave one of them out"):
        train(tmp_path, streaming="true", group_by_length="true")
