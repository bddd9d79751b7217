"""Callbacks: signals and losses that are not finite stop a run without loss, and the console shows totals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl

from loramoe.data import PackedCollator, SftCollator
from loramoe.training import callbacks as module
from loramoe.training import run as run_module
from loramoe.training import trainer
from loramoe.training.callbacks import (
    NONFINITE_FOLDER,
    FiniteGuard,
    NonFiniteError,
    StopAtSignal,
    StoppedError,
    decode_samples,
)
from loramoe.training.checkpoint import METRICS, checkpoints, latest_complete
from tests.conftest import POISON
from tests.training.conftest import assert_same_weights, history, weights


class SignalAtStep(StopAtSignal):
    """Sends this process a signal in the midst of a step, as a scheduler would."""

    def on_step_begin(self, args: object, state: SimpleNamespace, control: object, **kwargs: object) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)


def test_a_stopped_run_resumes_on_the_same_trajectory(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flags = {"logging_steps": 1, "lora_dropout": 0.2}
    handler = signal.getsignal(signal.SIGUSR1)
    train(tmp_path / "whole", **flags)
    assert signal.getsignal(signal.SIGUSR1) is handler
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "StopAtSignal", SignalAtStep)
        with pytest.raises(StoppedError, match=r"SIGUSR1 stopped the run after step 4 of 6.*checkpoint-4"):
            train(tmp_path / "stopped", **flags)
    signal.signal(signal.SIGUSR1, handler)  # a stopped run leaves the signal taken over, to leave in peace
    assert [folder.name for folder in checkpoints(tmp_path / "stopped")] == ["checkpoint-3", "checkpoint-4"]
    assert not (tmp_path / "stopped" / METRICS).exists()
    train(tmp_path / "stopped", **flags)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


GROUP = """
    import os, signal, sys, time
    import train
    from loramoe.training import run
    os.setsid()
    class AtStep4(run.StopAtSignal):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                os.killpg(0, signal.SIGTERM)
                time.sleep(0.5)
    run.StopAtSignal = AtStep4
    sys.exit(train.main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_workers_of_the_data_loader_ignore_a_signal_to_the_group(own_dataset_cache: None, tiny_task, tmp_path: Path):
    flags = tiny_task.flags(tmp_path / "out", dataloader_num_workers=2)
    command = [sys.executable, "-c", textwrap.dedent(GROUP), *flags]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 75, done.stderr[-3000:]
    assert latest_complete(tmp_path / "out") == tmp_path / "out" / "checkpoint-4"


def test_a_signal_of_one_process_stops_all(monkeypatch: pytest.MonkeyPatch):
    for name in ("SIGTERM", "SIGUSR1"):
        monkeypatch.setattr(module.signal, "signal", lambda number, handler: None)
        monkeypatch.setattr(module, "gather", lambda own, name=name: torch.tensor([0, int(signal.Signals[name])]))
        stop, control = StopAtSignal(), TrainerControl()
        stop.on_step_end(SimpleNamespace(device="cpu"), SimpleNamespace(), control)
        assert stop.stopped is signal.Signals[name]
        assert control.should_save
        assert control.should_training_stop


@pytest.fixture
def run(train, poisoned: Path) -> Callable[..., object]:
    """Trains on the poisoned samples, one epoch of 12 steps."""
    flags = {"model_name_or_path": poisoned / "base", "dataset_dir": poisoned / "rows", "logging_steps": 1}
    flags |= {"max_steps": 12, "lora_dropout": 0, "eval_strategy": "no", "eval_on_start": "false"}
    return lambda name, **changes: train(poisoned / name, **{**flags, **changes})


def test_the_run_stops_and_names_the_samples(run, poisoned: Path):
    with pytest.raises(NonFiniteError, match=r"step \d+, rank 0: the loss is nan.*--on_nonfinite skip") as e:
        run("out")
    (file,) = (poisoned / "out" / NONFINITE_FOLDER).iterdir()
    assert str(file) in str(e.value)
    report = json.loads(file.read_text())
    assert report["fault"] == "the loss is nan"
    assert len(report["samples"]) == 4
    (guilty,) = [each for each in report["samples"] if POISON in each["text"].split()]
    assert guilty["task_type"] == 1
    assert not (poisoned / "out" / METRICS).exists()
    for saved in (poisoned / "out").glob("checkpoint-*"):
        assert all(weight.isfinite().all() for weight in weights(saved).values())


def test_the_micro_batch_is_skipped_and_counted(run, poisoned: Path):
    run("out", on_nonfinite="skip", gradient_accumulation_steps=2, max_steps=6)
    assert all(weight.isfinite().all() for weight in weights(poisoned / "out").values())
    skipped = [entry["skipped"] for entry in history(poisoned / "out") if "skipped" in entry]
    assert skipped == sorted(skipped)
    assert skipped[-1] == 1
    assert all(torch.isfinite(torch.tensor(entry["blc"])) for entry in history(poisoned / "out") if "blc" in entry)


class TestGuard:
    """The guard by itself, on one weight."""

    @pytest.fixture
    def weight(self) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.ones(2))

    @pytest.fixture
    def make(self, weight: torch.nn.Parameter, tmp_path: Path) -> Callable[..., SimpleNamespace]:
        args = SimpleNamespace(output_dir=str(tmp_path), process_index=3, fp16=False)
        state = SimpleNamespace(global_step=4)
        batch = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[-100, 6]])}
        batch["attention_mask"] = torch.ones(1, 2)

        def guard(action: str, **options: object) -> SimpleNamespace:
            made = FiniteGuard(SimpleNamespace(decode=str), action, **options)
            made.on_train_begin(args, state, None, model=torch.nn.ParameterList([weight]))
            step = lambda: made.on_pre_optimizer_step(args, state, None)  # noqa: E731
            return SimpleNamespace(
                guard=made, args=args, loss=lambda loss: made.check_loss(loss, batch, args, state), step=step
            )

        return guard

    def test_the_gradient_of_a_skipped_loss_is_zero(self, make, weight: torch.nn.Parameter):
        skip = make("skip")
        for factor, gradient in ((3.0, 3.0), (float("inf"), 3.0), (2.0, 5.0)):  # accumulated
            loss = (weight * factor).sum()
            skip.loss(loss)
            loss.backward()
            assert weight.grad.tolist() == [gradient, gradient]
        assert skip.guard.skipped == 1

    def test_a_gradient_that_is_not_finite_stops_the_run(self, make, weight: torch.nn.Parameter, tmp_path: Path):
        stop = make("stop")
        stop.loss(torch.tensor(1.0))
        weight.grad = torch.tensor([1.0, float("nan")])
        stop.args.fp16 = True  # whose scaler lets steps overflow on purpose
        stop.step()
        stop.args.fp16 = False
        stop.loss(torch.tensor(1.0))
        with pytest.raises(NonFiniteError, match=r"step 5, rank 3: the gradient's norm is nan, of a finite loss"):
            stop.step()
        report = json.loads((tmp_path / NONFINITE_FOLDER / "step-5-rank-3-1.json").read_text())
        assert report["samples"] == [{"text": "tensor([5, 6])", "answer": "[6]", "input_ids": [5, 6]}]

    def test_a_gradient_that_is_not_finite_is_skipped(self, make, weight: torch.nn.Parameter):
        skip = make("skip")
        optimizer = torch.optim.AdamW([weight], weight_decay=0.1)
        for gradient, moved in ((1.0, True), (float("inf"), False), (1.0, True)):
            before = weight.detach().clone()
            weight.grad = torch.full((2,), gradient)
            skip.step()
            optimizer.step()
            assert torch.equal(weight, before) is not moved

    def test_deepspeed_has_taken_its_step_and_can_only_stop(self, make):
        norms = iter([None, 1.0, float("inf")])
        guard = make("skip", engine=lambda: SimpleNamespace(get_global_grad_norm=lambda: next(norms)))
        guard.step()
        guard.step()
        with pytest.raises(NonFiniteError, match="the gradient's norm is inf"):
            guard.step()

    def test_reports_have_an_end_and_the_count_has_none(self, make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "MAX_FILES", 2)
        skip = make("skip")
        for _ in range(5):
            skip.loss(torch.tensor(float("nan")))
        assert skip.guard.skipped == 5
        assert len(list((tmp_path / NONFINITE_FOLDER).iterdir())) == 2


def test_samples_are_decoded_alike_padded_and_packed():
    features = [
        {"input_ids": [1, 5, 2, 6, 2], "labels": [-100, -100, -100, 6, 2], "task_types": 1},
        {"input_ids": [1, 7, 2], "labels": [-100, 7, 2], "task_types": 0},
    ]
    tokenizer = SimpleNamespace(decode=lambda ids: " ".join(str(int(i)) for i in ids))
    padded, packed = (decode_samples(collate(features), tokenizer) for collate in (SftCollator(0), PackedCollator()))
    assert padded == packed
    assert padded[1] == {"text": "1 7 2", "answer": "7 2", "input_ids": [1, 7, 2], "task_type": 0}


@pytest.mark.parametrize("disable_tqdm", ["true", "false"])
def test_totals_are_printed_and_everything_is_kept(
    train, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, disable_tqdm: str
):
    logged = {"cov": 0.5, "routing/cov/early": 0.25, "share/type0/group0": 0.75}
    monkeypatch.setattr(trainer, "log_values", lambda stats: logged)
    train(tmp_path, disable_tqdm=disable_tqdm, max_steps=2)
    printed = re.sub(r"'([\d.]+)'", r"\1", "".join(capsys.readouterr()))
    for line in ("'cov': 0.5, 'share/type0/group0': 0.75", "'eval_cov': 0.5, 'eval_share/type0/group0': 0.75"):
        assert line in printed
    assert "routing/" not in printed
    assert [entry["routing/cov/early"] for entry in history(tmp_path) if "loss" in entry] == [0.25]
