"""Signals of a scheduler: the step is finished, all is saved, and the next start goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl

from loramoe.training import run as run_module
from loramoe.training.checkpoints import ADAPTER, METRICS, checkpoints, latest_complete
from loramoe.training.signals import StopAtSignal, StoppedError


class SignalAtStep(StopAtSignal):
    """Sends this process a signal in the midst of a step, as a scheduler would."""

    number, step = signal.SIGTERM, 4

    def on_step_begin(self, args: object, state: SimpleNamespace, control: object, **kwargs: object) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(
    number: signal.Signals, train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flags = {"logging_steps": 1, "lora_dropout": 0.2}
    train(tmp_path / "whole", **flags)
    handler = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "StopAtSignal", type("At4", (SignalAtStep,), {"number": number}))
        with pytest.raises(StoppedError, match=rf"{number.name} stopped the run after step 4 of 6; .*checkpoint-4 is"):
            train(tmp_path / "stopped", **flags)
    signal.signal(number, handler)  # a stopped run leaves the signal taken over, to leave in peace
    assert [folder.name for folder in checkpoints(tmp_path / "stopped")] == ["checkpoint-3", "checkpoint-4"]
    assert not (tmp_path / "stopped" / METRICS).exists()
    train(tmp_path / "stopped", **flags)
    whole, stopped = (
        load_file(tmp_path / name / ADAPTER / "adapter_model.safetensors") for name in ("whole", "stopped")
    )
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


GROUP = """
    import os, signal, sys, threading, time
    from pathlib import Path
    import train
    from loramoe.training.signals import StopAtSignal
    os.setsid()
    class AtStep4(StopAtSignal):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                os.killpg(0, signal.SIGTERM)
                time.sleep(0.5)
    import loramoe.training.run as run
    run.StopAtSignal = AtStep4
    sys.exit(train.main())
"""


@pytest.mark.slow
def test_workers_of_the_data_leave_a_signal_to_the_group_to_the_run(own_dataset_cache: None, tiny_task, tmp_path: Path):
    command = [sys.executable, "-c", textwrap.dedent(GROUP)]
    flags = tiny_task.flags(tmp_path / "out", dataloader_num_workers=2)
    done = subprocess.run(
        [*command, *flags], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 75, done.stderr[-3000:]
    assert latest_complete(tmp_path / "out") == tmp_path / "out" / "checkpoint-4"


def test_the_signals_are_given_back(train, tmp_path: Path):
    before = signal.getsignal(signal.SIGTERM)
    train(tmp_path, max_steps=1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_of_one_process_stops_all(monkeypatch: pytest.MonkeyPatch):
    stop, control = StopAtSignal(), TrainerControl()
    monkeypatch.setattr("loramoe.training.signals._greatest", lambda noted, device: max(noted, int(signal.SIGUSR1)))
    stop.on_step_end(SimpleNamespace(device="cpu"), SimpleNamespace(), control)
    assert stop.stopped is signal.SIGUSR1
    assert control.should_save
    assert control.should_training_stop
    assert isinstance(stop, TrainerCallback)
