"""A run from end to end: it survives an interruption, an adapter is continued, what was finished stays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaModel, TrainerCallback

from loramoe.cli import main
from loramoe.data import DatasetError
from loramoe.training import LoraMoeTrainer, parse, run_sft
from loramoe.training import run as module
from loramoe.training.callbacks import StoppedError
from loramoe.training.checkpoint import ADAPTER, METRICS
from loramoe.utils import SaveError, UsageError
from tests.training.conftest import FLAGS, Finished, assert_same_weights, history


class PowerCut(TrainerCallback):
    """Ends a run before its 15th step."""

    def on_step_begin(self, args: object, state: SimpleNamespace, control: object, **kwargs: object) -> None:
        if state.global_step == 14:
            raise KeyboardInterrupt


def test_an_interrupted_run_resumes_by_itself_on_the_same_trajectory(
    finished: Finished, train, tiny_task, tmp_path: Path
):
    out, flags = tmp_path / "out", {**FLAGS, "recall_file": tiny_task.recall_file}
    with pytest.raises(KeyboardInterrupt):
        run_sft(parse(tiny_task.flags(out, **flags)), callbacks=[PowerCut()])
    assert not (out / METRICS).exists()
    with pytest.raises(FileExistsError, match=r"learning_rate was 0.01, now 0.02"):
        train(out, **flags, learning_rate=0.02)
    moved = shutil.copytree(tiny_task.train_dir, tmp_path / "another_disk")
    assert train(out, **flags, dataset_dir=moved) == finished.metrics
    assert_same_weights(out, finished.folder)
    losses = [[(e["step"], e["loss"]) for e in history(folder) if "loss" in e] for folder in (out, finished.folder)]
    assert losses[0] == losses[1]
    with pytest.raises(FileExistsError, match="holds a finished run"):
        train(out, **flags)


@pytest.mark.slow
def test_a_run_that_goes_on_from_an_older_checkpoint_removes_the_newer(train, tmp_path: Path):
    train(tmp_path, save_steps=2)
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / "of_the_first_run").touch()
    train(tmp_path, save_steps=2, resume_from_checkpoint=tmp_path / "checkpoint-2", overwrite_output_dir="true")
    assert [mark.parent.name for mark in tmp_path.rglob("of_the_first_run")] == ["checkpoint-2"]


def test_a_finished_adapter_is_trained_further(finished: Finished, train, tmp_path: Path):
    metrics = train(tmp_path, adapter=finished.folder / ADAPTER)
    assert metrics["before"]["loss"] == pytest.approx(finished.metrics["after"]["loss"], rel=1e-6)
    assert metrics["after"]["loss"] != metrics["before"]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["padding_free", "gradient_checkpointing"])
def test_what_saves_memory_changes_nothing(train, tmp_path: Path, change: str):
    flags = {"gradient_accumulation_steps": 2, "lora_dropout": 0, "logging_steps": 1, "blc_weight": 1, "max_steps": 4}
    plain, changed = tmp_path / "plain", tmp_path / "changed"
    train(plain, **flags)
    train(changed, **flags, **{change: "true"})
    names = ("loss", "blc", "grad_norm", "eval_loss", "eval_blc", "share/type1/group1")
    for got, expected in zip(history(changed), history(plain), strict=True):
        chosen = {name: value for name, value in expected.items() if name in names}
        assert {name: got[name] for name in chosen} == pytest.approx(chosen, rel=1e-4)
    assert_same_weights(changed, plain, rtol=1e-3, atol=1e-5)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The batches that a run trains on."""
    seen: list[dict[str, object]] = []
    compute = LoraMoeTrainer.compute_loss

    def spy(self: object, model: torch.nn.Module, inputs: dict[str, object], *args: object, **kwargs: object) -> object:
        if model.training:
            seen.append(inputs)
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LoraMoeTrainer, "compute_loss", spy)
    return seen


def test_packed_rows_are_filled_with_whole_samples(train, tmp_path: Path, batches: list):
    train(tmp_path, packing="true", max_seq_length=64, per_device_train_batch_size=1, num_train_epochs=1, max_steps=-1)
    lengths = [batch["sample_lengths"] for batch in batches]
    assert sum(map(len, lengths)) == 48
    assert all(sum(row) <= 64 for row in lengths)
    assert sum(map(sum, lengths)) / (64 * len(lengths)) > 0.85


@pytest.mark.slow
def test_samples_of_similar_length_come_together(train, tmp_path: Path, batches: list):
    for grouped in ("true", "false"):
        train(tmp_path / grouped, group_by_length=grouped, max_steps=12, save_steps=100, do_eval="false")
    full = [batch["attention_mask"].float().mean().item() for batch in batches]
    assert sum(full[:12]) / 12 > sum(full[12:]) / 12 + 0.05


def test_a_model_that_lets_samples_see_each_other_is_refused(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    forward = LlamaModel.forward

    def blind(self: object, *args: object, position_ids: object = None, cu_seq_lens_q: object = None, **kwargs: object):
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", blind)
    with pytest.raises(UsageError, match="does not keep the samples of a packed row apart"):
        train(tmp_path, packing="true")


@pytest.mark.parametrize(
    "flags",
    [
        {"neftune_noise_alpha": 5, "optim": "adafactor", "pad_to_multiple_of": 8, "attn_implementation": "eager"},
        {"early_stopping_patience": 1, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1},
        pytest.param({"torch_compile": "true"}, marks=pytest.mark.slow),
    ],
    ids=lambda flags: next(iter(flags)),
)
def test_flags_of_the_trainer_train(train, tmp_path: Path, flags: dict[str, object]):
    metrics = train(tmp_path, **{"max_steps": 2, **flags})
    assert metrics["after"]["loss"] != metrics["before"]["loss"]


def test_a_resumed_run_continues_its_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", {})
    args = SimpleNamespace(report_to=["wandb"], should_save=True, output_dir=str(tmp_path), overwrite_output_dir=False)
    ids = []
    for overwrite in (False, False, True):
        args.overwrite_output_dir = overwrite
        os.environ.clear()
        module._continue_tracker(args)
        ids.append(os.environ["WANDB_RUN_ID"])
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (StoppedError("SIGTERM"), 75, "SIGTERM"),
        (SaveError("disk full"), 1, "disk full"),
        (DatasetError("line 3"), 1, "line 3"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), 1, "out of memory (CUDA out of memory. Tried). Try"),
        (RuntimeError("a bug"), 1, None),
    ],
)
def test_how_a_run_ends_is_in_its_code(
    error: Exception, code: int, message: str | None, tiny_task, tmp_path: Path, monkeypatch, capsys
):
    def end(arguments: object) -> None:
        raise error

    monkeypatch.setattr(module, "run_sft", end)
    assert main(["train", *tiny_task.flags(tmp_path)]) == code
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback" if message is None else f"loramoe train: {message}")
    assert (printed.count("\n") == 1) == (message is not None)
    assert main(["train", *tiny_task.flags(tmp_path, lora_rnak=4)]) == 1
    assert capsys.readouterr().err.startswith("loramoe train: unknown flag --lora_rnak")


def test_the_command_lists_its_subcommands(capsys: pytest.CaptureFixture[str]):
    assert (main([]), main(["trian"])) == (0, 2)
    printed = capsys.readouterr()
    assert "train" in printed.out
    assert "unknown command 'trian'" in printed.err
