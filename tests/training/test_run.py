"""A run from end to end: its trajectory survives an interruption, an adapter is continued, what was finished stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from loramoe.data import DatasetError
from loramoe.training import run as run_module
from loramoe.training.checkpoint import ADAPTER, METRICS
from loramoe.training.trainer import LoraMoeTrainer
from loramoe.utils import UsageError

ROOT = Path(__file__).parents[2]
NAMES = ("first", "second")  # of validation sets


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


def test_edited_rows_do_not_resume_silently(train, tiny_task, tmp_path: Path, power_cut):
    file = tmp_path / "rows.json"
    file.write_bytes((tiny_task.train_dir / "train.json").read_bytes())
    flags = {"dataset_dir": file}
    power_cut(4)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "out", **flags)
    file.write_text(json.dumps(json.loads(file.read_text())[1:]))
    with pytest.raises(FileExistsError, match="holds an interrupted run with other arguments: training_data was"):
        train(tmp_path / "out", **flags)


def test_a_checkpoint_that_another_machine_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_module, "build_recipe", lambda prepared: {})
    monkeypatch.setattr(run_module, "decide_on_rank_0", lambda decide: tmp_path)  # rank 0 found it
    args = SimpleNamespace(process_index=1, do_train=True, output_dir="out")
    prepared = SimpleNamespace(arguments=(None, None, args))
    with pytest.raises(FileNotFoundError, match=r"which rank 1 does not see\. Put output_dir on a file system that"):
        run_module._open_run(prepared, ExitStack())
    (tmp_path / "complete").touch()
    assert run_module._open_run(prepared, ExitStack()) == ({}, tmp_path)


def test_a_run_that_goes_on_from_an_older_checkpoint_removes_the_newer(train, tmp_path: Path):
    older = {"resume_from_checkpoint": tmp_path / "checkpoint-2", "save_steps": 2}
    train(tmp_path, save_steps=2)
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / "of_the_first_run").touch()
    with pytest.raises(FileExistsError, match=r"holds checkpoint-4, checkpoint-6: a later start"):
        train(tmp_path, **older)
    train(tmp_path, **older, overwrite_output_dir="true")
    assert [mark.parent.name for mark in tmp_path.rglob("of_the_first_run")] == ["checkpoint-2"]
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (2, 4, 6)]


def test_peft_path_continues_from_an_adapter(train, tmp_path: Path):
    first = train(tmp_path / "first")
    second = train(tmp_path / "second", adapter=tmp_path / "first" / ADAPTER)
    assert second["before"]["loss"] == pytest.approx(first["after"]["loss"], rel=1e-6)
    assert second["after"]["loss"] < second["before"]["loss"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_evaluation_alone_reads_a_finished_run_and_changes_nothing(train, tiny_task, tmp_path: Path):
    trained = train(tmp_path, blc_weight=0.3)
    before = files(tmp_path)
    evaluated = train(tmp_path, do_train="false", do_eval="true", recall_file=tiny_task.recall_file)
    assert evaluated["before"] == {}
    assert evaluated["after"]["loss"] == pytest.approx(trained["after"]["loss"], rel=1e-6)
    after = files(tmp_path)
    results = json.loads(after["eval_results.json"])
    assert (results["eval_loss"], results["recall"]) == (evaluated["after"]["loss"], evaluated["after"]["recall"])
    assert {name for name in after if after[name] != before.get(name)} == {"eval_results.json"}


def test_evaluation_alone_of_another_adapter(train, tmp_path: Path):
    trained = train(tmp_path / "first")
    adapter = tmp_path / "first" / ADAPTER
    for _ in range(2):  # a second evaluation is no overwriting
        evaluated = train(tmp_path / "evaluated", do_eval="true", adapter=adapter)
    assert evaluated["after"]["loss"] == pytest.approx(trained["after"]["loss"], rel=1e-6)
    assert list(files(tmp_path / "evaluated")) == ["eval_results.json"]


def test_evaluation_alone_needs_an_adapter_and_something_to_ask(train, tmp_path: Path):
    with pytest.raises(UsageError, match=r"no adapter to evaluate.*Set --adapter"):
        train(tmp_path, do_eval="true")
    train(tmp_path, max_steps=1)
    with pytest.raises(UsageError, match=r"no samples to evaluate on. Set --validation_file, or --recall_file"):
        train(tmp_path, do_eval="true", validation_file=None, validation_split_percentage=0)


@pytest.mark.parametrize("blc_weight", [0.1, 0])
def test_bad_rows_are_told_before_the_base_model_is_loaded(train, tmp_path: Path, blc_weight: float):
    file = tmp_path / "rows.json"
    file.write_text('[{"instruction": "w1", "input": "", "output": "w2", "task_type": 7}]')
    with pytest.raises(DatasetError, match="field 'task_type': got 7"):
        train(tmp_path / "out", dataset_dir=file, blc_weight=blc_weight)
    assert not (tmp_path / "out").exists()


def test_gradient_checkpointing_changes_nothing(train, tmp_path: Path):
    train(tmp_path / "plain", lora_dropout=0)
    train(tmp_path / "checkpointing", lora_dropout=0, gradient_checkpointing="true")
    assert_same(weights(tmp_path / "checkpointing"), weights(tmp_path / "plain"), rtol=1e-5, atol=1e-7)


def test_a_run_leaves_numbers_and_a_figure(train, tiny_task, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    metrics = train(tmp_path, recall_file=tiny_task.recall_file)
    assert json.loads((tmp_path / METRICS).read_text()) == metrics
    assert metrics["before"].keys() == metrics["after"].keys() >= {"loss", "perplexity", "recall", "loss/knowledge"}
    printed = capsys.readouterr().out
    assert f"adapter   {tmp_path / ADAPTER}" in printed


@pytest.mark.slow
def test_two_processes_equal_two_accumulated_batches(train, tiny_task, tmp_path: Path):
    # Rank r takes every second batch, so one process sees the same batches in the same order.
    flags = {"lora_dropout": 0, "max_steps": 5, "blc_weight": 0.5, "save_strategy": "no", "max_grad_norm": 0}
    flags |= {"experts_page": "true"}
    flags["per_device_eval_batch_size"] = 5  # the last batch is filled up with repetitions, which must not count
    train(tmp_path / "one", gradient_accumulation_steps=2, **flags)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "train.py"]
    command += tiny_task.flags(tmp_path / "two", ddp_find_unused_parameters="false", **flags)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-4, atol=1e-6)
    one, two = (json.loads((tmp_path / name / METRICS).read_text())["after"]["loss"] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)
    gates = [json.loads((tmp_path / name / "report/experts.json").read_text())["gate_TLE"] for name in ("one", "two")]
    torch.testing.assert_close(torch.tensor(gates[1]), torch.tensor(gates[0]), rtol=1e-4, atol=1e-6)


def test_a_run_resumed_at_its_last_step_ends_with_the_best_weights_too(train, tmp_path: Path):
    flags = {"load_best_model_at_end": "true", "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    flags |= {"max_steps": 4, "learning_rate": 1, "lr_scheduler_type": "constant"}  # it gets worse with every step
    train(tmp_path, **flags)
    best = weights(tmp_path)
    assert_same(best, weights(tmp_path / "checkpoint-2"), rtol=0, atol=0)
    (tmp_path / METRICS).unlink()
    shutil.rmtree(tmp_path / ADAPTER)
    train(tmp_path, **flags)
    assert_same(weights(tmp_path), best, rtol=0, atol=0)


def test_moved_data_resumes(train, tiny_task, tmp_path: Path, power_cut):
    power_cut(4)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "out")
    moved = shutil.copytree(tiny_task.train_dir, tmp_path / "another_disk")
    train(tmp_path / "out", dataset_dir=moved)
    assert (tmp_path / "out" / METRICS).is_file()


def test_a_resumed_run_continues_its_tracker(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    args = SimpleNamespace(report_to=["wandb"], should_save=True, output_dir=str(tmp_path), overwrite_output_dir=False)
    ids = []
    for _ in range(2):
        monkeypatch.delenv("WANDB_RUN_ID", raising=False)
        run_module._continue_tracker(args)
        ids.append(os.environ["WANDB_RUN_ID"])
    assert ids[0] == ids[1] != ""
    args.overwrite_output_dir = True
    monkeypatch.delenv("WANDB_RUN_ID")
    run_module._continue_tracker(args)
    assert os.environ["WANDB_RUN_ID"] != ids[0]
    monkeypatch.delenv("WANDB_RUN_ID")
    monkeypatch.delenv("WANDB_RESUME")


@pytest.mark.parametrize(
    "flags",
    [
        {"neftune_noise_alpha": 5},
        {"optim": "adafactor"},
        {"attn_implementation": "eager"},
        {"pad_to_multiple_of": 8},
        {"early_stopping_patience": 1, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1},
        pytest.param({"torch_compile": "true"}, marks=pytest.mark.slow),
    ],
    ids=lambda flags: next(iter(flags)),
)
def test_flags_of_the_trainer_train(train, tmp_path: Path, flags: dict[str, object]):
    metrics = train(tmp_path, **{"max_steps": 2, **flags})
    assert metrics["after"]["loss"] != metrics["before"]["loss"]


@pytest.mark.parametrize(
    ("sets", "metric", "message"),
    [
        (1, "loss/knowlege", "knowlege names none of the task types tasks, knowledge"),
        (2, None, "loss names none of the validation sets first, second"),
        (2, "second_loss/facts", "facts names none of the task types"),
    ],
)
def test_a_best_metric_that_no_evaluation_has_is_refused_before_weights_are_loaded(
    train, tiny_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: int, metric: str | None, message: str
):
    monkeypatch.setattr(run_module, "load_base", lambda *args: pytest.fail("weights were loaded"))
    validation = [{"path": str(shutil.copy(tiny_task.test_file, tmp_path / f"{name}.json"))} for name in NAMES[:sets]]
    config = json.dumps({"datasets": [{"path": str(tiny_task.train_dir)}], "validation": validation})
    (tmp_path / "data.yaml").write_text(config)
    flags = {"dataset_dir": None, "validation_file": None, "datasets": tmp_path / "data.yaml", "eval_steps": 3}
    flags |= {"eval_strategy": "steps", "early_stopping_patience": 1, "metric_for_best_model": metric}
    with pytest.raises(UsageError, match=message):
        train(tmp_path / "out", **flags)


def test_the_best_of_one_validation_set_of_several(train, tiny_task, tmp_path: Path):
    validation = [{"path": str(shutil.copy(tiny_task.test_file, tmp_path / f"{name}.json"))} for name in NAMES]
    config = json.dumps({"datasets": [{"path": str(tiny_task.train_dir)}], "validation": validation})
    (tmp_path / "data.yaml").write_text(config)
    flags = {"dataset_dir": None, "validation_file": None, "datasets": tmp_path / "data.yaml", "max_steps": 2}
    flags |= {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "metric_for_best_model": "second_loss/tasks"}
    metrics = train(tmp_path / "out", load_best_model_at_end="true", **flags)
    state = json.loads((tmp_path / "out/trainer_state.json").read_text())
    logged = [entry["eval_second_loss/tasks"] for entry in state["log_history"] if "eval_second_loss/tasks" in entry]
    assert state["best_metric"] == min(logged[1:])
    assert metrics["after"]["second_loss/tasks"] == pytest.approx(state["best_metric"])
