"""`loramoe report`: its files, and errors of one line before the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraMoeConfig, get_peft_model
from transformers import AutoModelForCausalLM

from loramoe import cli
from loramoe.data import PromptFormat, save_prompt_format


@pytest.fixture
def adapter(tiny_task, perturb, tmp_path: Path) -> Path:
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    perturb(get_peft_model(base, LoraMoeConfig(lora_nums=3))).save_pretrained(tmp_path / "adapter")
    save_prompt_format(tmp_path / "adapter", PromptFormat("release", 32, {0: "tasks", 1: "knowledge"}))
    return tmp_path / "adapter"


@pytest.fixture
def report(own_dataset_cache, tiny_task, adapter: Path, tmp_path: Path) -> Any:
    """Runs the command; later flags replace earlier ones."""

    def run(*flags: str) -> int:
        known = ["--adapter", str(adapter), "--file", str(tiny_task.test_file), "--output_dir", str(tmp_path / "out")]
        return cli.main(["report", *known, *flags])

    return run


def test_the_report_concludes_and_is_not_overwritten(report, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert report() == 0
    numbers = json.loads((tmp_path / "out" / "experts.json").read_text())
    assert numbers["conclusion"] in capsys.readouterr().out
    assert "knowledge" in numbers["conclusion"]
    assert (numbers["samples_T"], numbers["data"]) == ([6, 6], "test.json")
    assert report() == 1
    assert "--overwrite" in capsys.readouterr().err
    assert report("--overwrite", "--limit", "4", "--batch_size", "3") == 0
    limited = json.loads((tmp_path / "out" / "experts.json").read_text())
    assert sum(limited["samples_T"]) == 4
    np.testing.assert_allclose(np.sum(limited["gate_TLE"], axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--file", "nowhere.json"], "nowhere.json"),
        (["--template", "chat"], "chat_template"),
        (["--device", "nowhere"], "--device"),
        (["--adapter", "nowhere/at all"], "nowhere/at all"),
        (["--output_dir", __file__], "is a file"),
    ],
)
def test_errors_of_one_line(report, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], word: str):
    assert report(*flags) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("loramoe report: ")
    assert word in error
    assert not (tmp_path / "out").exists()
