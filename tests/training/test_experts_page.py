"""What the end of a training leaves about its experts: the page of `loramoe.report`, or a word why there is none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from loramoe.report.__main__ import main
from loramoe.training import summary
from loramoe.training.summary import observe_experts


@pytest.mark.parametrize("packing", ["false", "true"])
def test_a_run_leaves_the_page_that_the_tool_makes(train, tiny_task, tmp_path: Path, capsys, packing: str):
    train(tmp_path, packing=packing, max_steps=2)
    page = tmp_path / "report" / "experts.html"
    assert page.is_file()
    assert f"  page      {page}   what each expert does" in capsys.readouterr().out
    left = json.loads((tmp_path / "report" / "experts.json").read_text())
    assert (left["rows"], left["data"], left["adapter"]) == (12, "test.json", "sft_lora_model")
    flags = ["--data", str(tiny_task.test_file), "--max_seq_length", "32", "--out", str(tmp_path / "again")]
    assert main([str(tmp_path / "sft_lora_model"), *flags]) == 0
    made = json.loads((tmp_path / "again" / "experts.json").read_text())
    assert (made["tokens_T"], made["blc_target"]) == (left["tokens_T"], "paper")
    for name in ("gate_TLE", "token_entropy_TN", "variation_TN"):
        np.testing.assert_allclose(made[name], left[name], rtol=1e-5)


def test_of_many_rows_a_few_are_run(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(summary, "PAGE_ROWS", 5)
    train(tmp_path, max_steps=1, validation_file=None, validation_split_percentage=20)
    left = json.loads((tmp_path / "report" / "experts.json").read_text())
    assert (left["rows"], left["data"]) == (5, "the rows set aside")


def test_without_experts_to_tell_apart_a_run_ends_all_the_same(train, tiny_task, tmp_path: Path, caplog):
    rows = json.loads((tiny_task.train_dir / "train.json").read_text())
    (tmp_path / "rows.json").write_text(json.dumps([{**row, "task_type": 0} for row in rows]))
    files = {"dataset_dir": None, "train_file": tmp_path / "rows.json", "validation_file": None}
    train(tmp_path, max_steps=1, lora_nums=1, blc_weight=0, validation_split_percentage=20, **files)
    assert "no page on the experts: adapter 'sft_lora_model' has lora_nums=1" in caplog.text
    assert not (tmp_path / "report").exists()
    assert (tmp_path / "metrics.json").is_file()


def test_without_rows_to_evaluate_on_there_is_no_page(train, tmp_path: Path):
    train(tmp_path, max_steps=1, validation_file=None, validation_split_percentage=0)
    assert not (tmp_path / "report").exists()


def test_under_fsdp_the_tool_is_named(caplog):
    assert observe_experts(SimpleNamespace(is_fsdp_enabled=True)) is None
    assert "FSDP shards the model. Make one with python -m loramoe.report." in caplog.text
