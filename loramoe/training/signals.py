"""SIGTERM and SIGUSR1, with which schedulers announce the end: save at the end of the step, and leave with a code.

A signal reaches one process or some; a checkpoint is written by all. So a handler only takes note, and at the end of
every step the processes agree, by one maximum over a single integer, whether any of them has been asked to stop.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loramoe.training.exit_codes import SIGNALS


class StoppedError(Exception):
    """The run was asked to stop, and everything is saved; the message says how to go on."""


class StopAtSignal(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Has the Trainer save and stop at the end of the step in which any process got SIGTERM or SIGUSR1.

    Attributes:
        stopped: The signal that the training was stopped by, None if it was not.
    """

    def __init__(self) -> None:
        self.stopped: signal.Signals | None = None
        self._noted = 0
        self._earlier: dict[signal.Signals, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the signals over."""
        self._earlier = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: Any) -> None:
        self._noted = number

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Agrees with the other processes."""
        noted = _greatest(self._noted, args.device)
        if noted:
            self.stopped = signal.Signals(noted)
            control.should_log = control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gives the signals back, unless the process is about to leave because of them."""
        if self.stopped is None:
            for number, handler in self._earlier.items():
                signal.signal(number, handler)

    def raise_if_stopped(self, args: TrainingArguments, state: TrainerState) -> None:
        """Ends a run that was stopped, which would otherwise be taken for one that has finished.

        Args:
            args: Of the Trainer.
            state: Of the Trainer.

        Raises:
            StoppedError: If a signal stopped the training.
        """
        if self.stopped is not None:
            raise StoppedError(
                f"{self.stopped.name} stopped the run after step {state.global_step} of {state.max_steps}; "
                f"{args.output_dir}/checkpoint-{state.global_step} is saved. Start the same command again to go on."
            )


def leave_signals_to_parent(start: Callable[[int], None] | None, worker: int) -> None:
    """Begins a worker of a DataLoader, which a signal to the whole process group must not end before the run has saved.

    It ends with its parent all the same, which it watches.

    Args:
        start: What else a worker begins with.
        worker: Its number.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if start is not None:
        start(worker)


def _greatest(value: int, device: torch.device) -> int:
    if not (dist.is_available() and dist.is_initialized()):
        return value
    greatest = torch.tensor(value, dtype=torch.int32, device=device)
    dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
    return int(greatest.item())
