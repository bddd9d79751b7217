"""A run from end to end: its trajectory survives an interruption, an adapter is continued, what was finished stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loramoe.data import DatasetError
from loramoe.training.checkpoints import ADAPTER, METRICS
from loramoe.training.trainer import LoraMoeTrainer

ROOT = Path(__file__).parents[2]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / ADAPTER / "adapter_model.safetensors")


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.fixture
def power_cut(monkeypatch: pytest.MonkeyPatch):
    """`power_cut(step)`: the next run ends there, in the midst of a step."""

    def at(step: int) -> None:
        original = LoraMoeTrainer.training_step

        def training_step(self: LoraMoeTrainer, *args: object, **kwargs: object) -> torch.Tensor:
            if self.state.global_step == step:
                monkeypatch.setattr(LoraMoeTrainer, "training_step", original)
                raise KeyboardInterrupt
            return original(self, *args, **kwargs)

        monkeypatch.setattr(LoraMoeTrainer, "training_step", training_step)

    return at


def test_an_interrupted_run_resumes_by_itself_on_the_same_trajectory(train, tmp_path: Path, power_cut):
    # 12 batches an epoch: the cut is in the second one, and dropout draws from the restored generator.
    flags = {"max_steps": 18, "save_steps": 5, "lora_dropout": 0.2, "eval_strategy": "steps", "eval_steps": 4}
    whole = train(tmp_path / "whole", **flags)
    power_cut(17)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", **flags)
    assert not (tmp_path / "cut" / METRICS).exists()
    resumed = train(tmp_path / "cut", **flags)
    assert_same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert resumed == whole
    losses = [
        {entry["step"]: entry["loss"] for entry in json.loads(file.read_text())["log_history"] if "loss" in entry}
        for file in (tmp_path / "cut" / "trainer_state.json", tmp_path / "whole" / "trainer_state.json")
    ]
    after_resume = {step: loss for step, loss in losses[0].items() if step > 16}
    assert after_resume == {step: loss for step, loss in losses[1].items() if step > 16}


def test_an_explicit_checkpoint_is_resumed_from(train, tmp_path: Path):
    train(tmp_path / "whole")
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    train(tmp_path / "again", resume_from_checkpoint=checkpoint)
    assert_same(weights(tmp_path / "again"), weights(tmp_path / "whole"))


def test_a_finished_run_is_kept_until_overwriting_is_asked_for(train, tmp_path: Path):
    train(tmp_path)
    with pytest.raises(FileExistsError, match="holds a finished run"):
        train(tmp_path)
    train(tmp_path, overwrite_output_dir="true", max_steps=2, save_steps=2)
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_other_arguments_do_not_resume_silently(train, tmp_path: Path, power_cut):
    power_cut(4)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    with pytest.raises(FileExistsError, match=r"learning_rate was 0.01, now 0.02"):
        train(tmp_path, learning_rate=0.02)


def test_peft_path_continues_from_an_adapter(train, tmp_path: Path):
    first = train(tmp_path / "first")
    second = train(tmp_path / "second", peft_path=tmp_path / "first" / ADAPTER)
    assert second["before"]["loss"] == pytest.approx(first["after"]["loss"], rel=1e-6)
    assert second["after"]["loss"] < second["before"]["loss"]


def test_evaluation_alone_trains_nothing(train, tmp_path: Path):
    trained = train(tmp_path / "first")
    adapter = tmp_path / "first" / ADAPTER
    for _ in range(2):  # a second evaluation is no overwriting
        evaluated = train(tmp_path / "evaluated", do_eval="true", peft_path=adapter)
    assert evaluated["after"]["loss"] == pytest.approx(trained["after"]["loss"], rel=1e-6)
    assert not (tmp_path / "evaluated" / ADAPTER).exists()


def test_bad_rows_are_told_before_the_base_model_is_loaded(train, tmp_path: Path):
    file = tmp_path / "rows.json"
    file.write_text('[{"instruction": "w1", "input": "", "output": "w2", "task_type": 7}]')
    with pytest.raises(DatasetError, match="field 'task_type': got 7"):
        train(tmp_path / "out", dataset_dir=None, train_file=file)
    assert not (tmp_path / "out").exists()


def test_gradient_checkpointing_changes_nothing(train, tmp_path: Path):
    train(tmp_path / "plain", lora_dropout=0)
    train(tmp_path / "checkpointing", lora_dropout=0, gradient_checkpointing="true")
    assert_same(weights(tmp_path / "checkpointing"), weights(tmp_path / "plain"), rtol=1e-5, atol=1e-7)


def test_a_run_leaves_numbers_and_a_figure(train, tiny_task, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    metrics = train(tmp_path, recall_file=tiny_task.recall_file)
    assert json.loads((tmp_path / METRICS).read_text()) == metrics
    assert metrics["before"].keys() == metrics["after"].keys() == {"loss", "perplexity", "recall"}
    assert (tmp_path / "expert_shares.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "expert_shares.json").read_text())["blc_target"] == "paper"
    printed = capsys.readouterr().out
    assert f"adapter   {tmp_path / ADAPTER}" in printed
    assert "48 rows" in printed or "kept: 48" in printed


@pytest.mark.slow
def test_two_processes_equal_two_accumulated_batches(train, tiny_task, tmp_path: Path):
    # Rank r takes every second batch, so one process sees the same batches in the same order.
    flags = {"lora_dropout": 0, "max_steps": 5, "blc_weight": 0.5, "save_strategy": "no", "max_grad_norm": 0}
    flags["per_device_eval_batch_size"] = 6  # a batch that is not full would be filled up, and count its rows twice
    train(tmp_path / "one", gradient_accumulation_steps=2, **flags)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "train.py"]
    command += tiny_task.flags(tmp_path / "two", ddp_find_unused_parameters="false", **flags)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-4, atol=1e-6)
    one, two = (json.loads((tmp_path / name / METRICS).read_text())["after"]["loss"] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)
