"""A run from end to end: it survives an interruption, an adapter is continued, what was finished stays."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaModel

from loramoe.cli import main
from loramoe.data import DatasetError
from loramoe.training import LoraMoeTrainer
from loramoe.training import run as module
from loramoe.training.callbacks import NonFiniteError, StoppedError
from loramoe.training.checkpoint import ADAPTER, METRICS
from loramoe.utils import SaveError, UsageError
from tests.training.conftest import FLAGS, Finished, assert_same_weights, history


def test_a_run_leaves_its_numbers(finished: Finished):
    metrics = finished.metrics
    assert json.loads((finished.folder / METRICS).read_text()) == metrics
    assert metrics["before"].keys() == metrics["after"].keys() >= {"loss", "perplexity", "recall", "loss/knowledge"}


def test_an_interrupted_run_resumes_by_itself_on_the_same_trajectory(
    finished: Finished, train, tiny_task, tmp_path: Path, power_cut
):
    out, flags = tmp_path / "out", {**FLAGS, "recall_file": tiny_task.recall_file}
    power_cut(14)
    with pytest.raises(KeyboardInterrupt):
        train(out, **flags)
    assert not (out / METRICS).exists()
    with pytest.raises(FileExistsError, match=r"learning_rate was 0.01, now 0.02"):
        train(out, **flags, learning_rate=0.02)
    with pytest.raises(FileExistsError, match=r"padding_free was False, now True"):
        train(out, **flags, padding_free="true")
    moved = shutil.copytree(tiny_task.train_dir, tmp_path / "another_disk")
    assert train(out, **flags, dataset_dir=moved) == finished.metrics
    assert_same_weights(out, finished.folder)
    losses = [[(e["step"], e["loss"]) for e in history(folder) if "loss" in e] for folder in (out, finished.folder)]
    assert losses[0] == losses[1]
    with pytest.raises(FileExistsError, match="holds a finished run"):
        train(out, **flags)
    train(out, overwrite_output_dir="true", max_steps=2, save_steps=2)
    assert [folder.name for folder in out.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_checkpoint_that_another_machine_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "build_recipe", lambda prepared: {})
    monkeypatch.setattr(module, "decide_on_rank_0", lambda decide: tmp_path)  # rank 0 found it
    args = SimpleNamespace(process_index=1, do_train=True, output_dir="out")
    prepared = SimpleNamespace(arguments=(None, None, args))
    with pytest.raises(FileNotFoundError, match=r"which rank 1 does not see"):
        module._open_run(prepared, ExitStack())


def test_a_run_that_goes_on_from_an_older_checkpoint_removes_the_newer(train, tmp_path: Path):
    older = {"resume_from_checkpoint": tmp_path / "checkpoint-2", "save_steps": 2}
    train(tmp_path, save_steps=2)
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / "of_the_first_run").touch()
    with pytest.raises(FileExistsError, match=r"holds checkpoint-6: a later start"):
        train(tmp_path, **older)
    train(tmp_path, **older, overwrite_output_dir="true")
    assert [mark.parent.name for mark in tmp_path.rglob("of_the_first_run")] == ["checkpoint-2"]


def test_a_finished_adapter_is_trained_further(finished: Finished, train, tmp_path: Path):
    metrics = train(tmp_path, adapter=finished.folder / ADAPTER)
    assert metrics["before"]["loss"] == pytest.approx(finished.metrics["after"]["loss"], rel=1e-6)
    assert metrics["after"]["loss"] != metrics["before"]["loss"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_evaluation_alone_reads_a_finished_run_and_changes_nothing(
    finished: Finished, train, tiny_task, tmp_path: Path
):
    out = Path(shutil.copytree(finished.folder, tmp_path / "copy"))
    before = files(out)
    evaluated = train(out, do_train="false", recall_file=tiny_task.recall_file, per_device_eval_batch_size=12)
    assert evaluated["before"] == {}
    assert evaluated["after"]["loss"] == pytest.approx(finished.metrics["after"]["loss"], rel=1e-6)
    after = files(out)
    assert json.loads(after["eval_results.json"])["recall"] == evaluated["after"]["recall"]
    assert {name for name in after if after[name] != before.get(name)} == {"eval_results.json"}
    train(tmp_path / "evaluated", do_eval="true", adapter=finished.folder / ADAPTER)
    assert list(files(tmp_path / "evaluated")) == ["eval_results.json"]


NO_SAMPLES = {"validation_file": None, "validation_split_percentage": 0}
EVALUATING = {"eval_strategy": "steps", "eval_steps": 3}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"do_eval": "true"}, r"no adapter to evaluate.*Set --adapter"),
        ({**NO_SAMPLES, **EVALUATING, "load_best_model_at_end": "true"}, "load_best_model_at_end needs samples"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_weights_are_loaded(
    train, tmp_path: Path, flags: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "load_base", lambda *args: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError, match=message):
        train(tmp_path, **flags)


def test_evaluation_alone_needs_something_to_ask(finished: Finished, train, tmp_path: Path):
    with pytest.raises(UsageError, match=r"no samples to evaluate on. Set --validation_file, or --recall_file"):
        train(tmp_path, do_eval="true", adapter=finished.folder / ADAPTER, **NO_SAMPLES)


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Filled by the first test that looks at it."""
    return tmp_path_factory.mktemp("padded")


@pytest.mark.parametrize("change", ["padding_free", "gradient_checkpointing"])
def test_what_saves_memory_changes_nothing(train, tmp_path: Path, padded: Path, change: str):
    flags = {"gradient_accumulation_steps": 2, "lora_dropout": 0, "logging_steps": 1, "blc_weight": 1}
    if not (padded / METRICS).exists():
        train(padded, **flags)
    train(tmp_path, **flags, **{change: "true"})
    names = ("loss", "blc", "grad_norm", "eval_loss", "eval_blc", "share/type1/group1")
    for got, expected in zip(history(tmp_path), history(padded), strict=True):
        chosen = {name: value for name, value in expected.items() if name in names}
        assert {name: got[name] for name in chosen} == pytest.approx(chosen, rel=1e-4)
    assert_same_weights(tmp_path, padded, rtol=1e-3, atol=1e-5)


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


def test_samples_of_similar_length_come_together(train, tmp_path: Path, batches: list):
    for grouped in ("true", "false"):
        train(tmp_path / grouped, group_by_length=grouped, max_steps=12, save_steps=100)
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
        (NonFiniteError("the loss is nan"), 1, "the loss is nan"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), 1, "out of memory (CUDA out of memory. Tried). Try"),
        (ValueError("a bug"), 1, None),
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


def test_a_wrong_flag_is_one_line(tiny_task, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", *tiny_task.flags(tmp_path, lora_rnak=4)]) == 1
    assert capsys.readouterr().err.startswith("loramoe train: unknown flag --lora_rnak")


def test_the_command_lists_its_subcommands(capsys: pytest.CaptureFixture[str]):
    assert (main([]), main(["trian"])) == (0, 2)
    printed = capsys.readouterr()
    assert "train" in printed.out
    assert "unknown command 'trian'" in printed.err
