"""What the card of a run says of it: its rows, its starts, its processes; and no path and nobody's name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from loramoe.report.card import CARD
from loramoe.training.checkpoint import ADAPTER, FIGURE
from loramoe.training.trainer import LoraMoeTrainer

ROOT = Path(__file__).parents[2]


def text(output_dir: Path) -> str:
    return str(ModelCard.load(output_dir / ADAPTER / CARD).text)


def test_a_run_leaves_its_card_with_the_adapter(train, tiny_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    metrics = train(tmp_path, expert_types="1,1,0,0,0,0,0,0", blc_target="match")
    said = text(tmp_path)
    assert f"| perplexity | {metrics['before']['perplexity']:.4g} | {metrics['after']['perplexity']:.4g} |" in said
    assert "| rows of task type 1 | 24 (questions answered from world knowledge; experts 0, 1) |" in said
    assert "| `blc_target` | match |" in said
    assert "| started from | a new adapter |" in said
    assert (tmp_path / ADAPTER / FIGURE).read_bytes() == (tmp_path / FIGURE).read_bytes()
    for private in (tmp_path, tiny_task.base.parent, ROOT, Path.home(), Path.cwd(), "hf_secret"):
        assert str(private) not in said
    assert not list(tmp_path.glob(f"checkpoint-*/{ADAPTER}/{CARD}"))


def test_rows_that_were_set_aside_are_told(train, tmp_path: Path):
    train(tmp_path, validation_file=None, validation_split_percentage=25, max_steps=1)
    said = text(tmp_path)
    assert "| rows to train on | 36 |" in said
    assert "| rows to evaluate on | 12, set aside from the training files |" in said


def test_without_evaluation_and_with_streaming_it_tells_what_is_known(train, tmp_path: Path):
    train(tmp_path, validation_file=None, validation_split_percentage=0, streaming="true", max_steps=1)
    said = text(tmp_path)
    assert "| `streaming` | True |" in said
    assert "## Results" not in said
    assert "tokens" not in said.partition("## Data")[2].partition("## Limits")[0].replace("tokenizer", "")


def test_an_adapter_that_is_continued_says_so(train, tmp_path: Path):
    train(tmp_path / "first", max_steps=1)
    train(tmp_path / "second", max_steps=1, peft_path=tmp_path / "first" / ADAPTER)
    assert "| started from | an earlier adapter |" in text(tmp_path / "second")


def test_task_types_of_ones_own_have_no_meaning_made_up(train, tmp_path: Path):
    train(tmp_path, expert_types="2,2,1,1,0,0,0,0", max_steps=1)
    assert "| rows of task type 1 | 24 (experts 2, 3) |" in text(tmp_path)
    assert "| rows of task type 2 | 0 (experts 0, 1) |" in text(tmp_path)


def test_a_single_expert_has_no_type_and_takes_rows_of_any(train, tiny_task, tmp_path: Path):
    rows = json.loads((tiny_task.train_dir / "train.json").read_text())
    (tmp_path / "rows.json").write_text(json.dumps([*rows, {**rows[0], "task_type": 7}]))
    files = {"dataset_dir": None, "train_file": tmp_path / "rows.json"}
    train(tmp_path / "out", lora_nums=1, blc_weight=0, max_steps=1, **files)
    said = text(tmp_path / "out")
    for kind, count in ((0, 24), (1, 24), (7, 1)):
        assert f"| rows of task type {kind} | {count} |" in said


def test_a_resumed_run_writes_the_card_anew_and_says_from_where(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    step = LoraMoeTrainer.training_step

    def until_the_fifth(self: LoraMoeTrainer, *args: object, **kwargs: object) -> object:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as cut:
        cut.setattr(LoraMoeTrainer, "training_step", until_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    assert not (tmp_path / ADAPTER).exists()
    train(tmp_path)
    assert " s, from checkpoint-3 on |" in text(tmp_path)
    assert "| steps | 6 (0.5 epochs) |" in text(tmp_path)


@pytest.mark.slow
def test_of_two_processes_one_writes_the_card(tiny_task, own_dataset_cache: None, tmp_path: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "train.py"]
    command += tiny_task.flags(tmp_path, ddp_find_unused_parameters="false", max_steps=2, save_strategy="no")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    after = json.loads((tmp_path / "metrics.json").read_text())["after"]
    assert f"| {after['loss']:.4g} |" in text(tmp_path)
    assert "| rows of a step | 4 in a forward × 1 accumulated × 2 processes |" in text(tmp_path)
