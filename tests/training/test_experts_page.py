"""What the end of a training leaves about its experts: the page of `loramoe.report`, or a word why there is none."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loramoe.report.__main__ import main
from loramoe.training import experts_page, summary
from loramoe.training.experts_page import write_experts_page

GATES = ("gate_TLE", "token_entropy_TN", "variation_TN")


@pytest.fixture
def train_to_page(train: Any) -> Any:
    """Trains for a step or two, and leaves the page."""
    return partial(train, max_steps=1, experts_page="true")


def numbers(folder: Path, name: str = "report/experts.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("flags", [{}, {"packing": "true"}, {"streaming": "true"}, {"bf16": "true"}], ids=str)
def test_the_page_has_the_shares_of_the_evaluation(
    train_to_page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, str]
):
    """In the precision of the training, too."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # transformers 4.57 sets it, for all that follows
    train_to_page(tmp_path, max_steps=2, learning_rate=0.1, **flags)
    page, shares = numbers(tmp_path), numbers(tmp_path, "expert_shares.json")
    assert page["task_types"] == shares["task_types"]
    assert page["tokens_T"] == shares["tokens_T"]
    np.testing.assert_allclose(page["gate_TLE"], shares["gate_TLE"], rtol=1e-5)


def test_a_run_leaves_the_page_that_the_tool_makes(train_to_page, tiny_task, tmp_path: Path, capsys):
    train_to_page(tmp_path)
    page = tmp_path / "report" / "experts.html"
    assert page.is_file()
    assert f"  page      {page}   what each expert does" in capsys.readouterr().out
    left = numbers(tmp_path)
    assert (left["rows"], left["data"], left["adapter"]) == (12, "test.json", "sft_lora_model")
    flags = ["--data", str(tiny_task.test_file), "--max_seq_length", "32", "--out", str(tmp_path / "again")]
    assert main([str(tmp_path / "sft_lora_model"), *flags]) == 0
    made = numbers(tmp_path, "again/experts.json")
    assert (made["tokens_T"], made["blc_target"]) == (left["tokens_T"], "match")
    for name in GATES:
        np.testing.assert_allclose(made[name], left[name], rtol=1e-5)


def test_of_many_rows_a_few_are_run(train_to_page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(experts_page, "PAGE_SAMPLES", 5)
    train_to_page(tmp_path, validation_file=None, validation_split_percentage=20)
    left = numbers(tmp_path)
    assert (left["rows"], left["data"]) == (5, "the validation samples")


class TestWhateverGoesWrongTheRunIsFinished:
    """With its numbers, its card and the words that say so."""

    def check(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert {"before", "after"} == numbers(folder, "metrics.json").keys()
        assert (folder / "sft_lora_model" / "README.md").is_file()
        assert not (folder / "report" / "experts.html").exists()
        printed = capsys.readouterr().out
        assert "Finished." in printed
        assert "  page  " not in printed

    @pytest.mark.parametrize("where", ["evenly_spaced", "observe", "write_pages"])
    def test_an_error_on_the_way_to_the_page(
        self, train_to_page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, capsys, where: str
    ):
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(experts_page, where, fail)
        train_to_page(tmp_path)
        words = "no page on the experts: RuntimeError: out of memory; loramoe report makes it from the saved"
        assert words in caplog.text
        self.check(tmp_path, capsys)

    def test_a_figure_that_cannot_be_drawn(
        self, train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, capsys
    ):
        def fail(shares: object, file: Path, *_: object) -> None:
            file.write_text("half a figure")
            raise RuntimeError("no font")

        monkeypatch.setattr(summary, "draw_shares", fail)
        train(tmp_path, max_steps=1)
        assert "no figure of the experts' shares: RuntimeError: no font" in caplog.text
        assert not (tmp_path / "expert_shares.png").exists()
        assert (tmp_path / "expert_shares.json").is_file()
        self.check(tmp_path, capsys)

    def test_a_single_expert(self, train_to_page, tmp_path: Path, caplog, capsys):
        train_to_page(tmp_path, lora_nums=1, blc_weight=0)
        assert "no page on the experts: adapter 'sft_lora_model' has lora_nums=1" in caplog.text
        self.check(tmp_path, capsys)


@pytest.mark.parametrize(
    "flags",
    [
        {"validation_file": None, "validation_split_percentage": 0},
        {"do_eval": "false", "do_train": "true"},
        {"experts_page": "false"},
    ],
    ids=str,
)
def test_without_rows_or_the_wish_there_is_no_page(train_to_page, tmp_path: Path, flags: dict[str, object]):
    train_to_page(tmp_path, **flags)
    assert (tmp_path / "metrics.json").is_file()
    assert not (tmp_path / "report").exists()


def test_the_page_of_an_earlier_start_is_no_later_ones(train_to_page, tmp_path: Path, capsys):
    train_to_page(tmp_path, max_steps=2, save_steps=1)
    (tmp_path / "report" / "mine.txt").touch()
    capsys.readouterr()
    resume = tmp_path / "checkpoint-2"
    train_to_page(tmp_path, max_steps=2, save_steps=1, resume_from_checkpoint="true", experts_page="false")
    assert resume.is_dir()
    assert [file.name for file in (tmp_path / "report").iterdir()] == ["mine.txt"]
    assert "  page  " not in capsys.readouterr().out


def trainer_of(**changes: object) -> SimpleNamespace:
    args = SimpleNamespace(should_log=True, should_save=True, per_device_eval_batch_size=1, disable_tqdm=True)
    return SimpleNamespace(args=args, is_fsdp_enabled=False, **changes)


def test_under_fsdp_the_tool_is_named(caplog):
    trainer = trainer_of()
    trainer.is_fsdp_enabled = True
    write_experts_page(trainer, ())
    assert "the model is sharded; loramoe report makes it from the saved adapter." in caplog.text


def test_only_one_process_makes_it(monkeypatch: pytest.MonkeyPatch):
    trainer = trainer_of()
    trainer.args.should_save = False
    monkeypatch.setattr(experts_page, "_write", lambda *_: pytest.fail("another process makes it"))
    write_experts_page(trainer, ())
