"""Callbacks of the Trainer: stop at a signal, guard against NaN and infinity, print one short line per log."""

from __future__ import annotations

import functools
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from accelerate.utils import gather
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.trainer_callback import ProgressCallback

from loramoe.analysis.routing import PARTS_PREFIX
from loramoe.data import IGNORE_INDEX
from loramoe.utils import STOP_SIGNALS, UsageError, write_json

NONFINITE_FOLDER: Final = "nonfinite"
MAX_FILES: Final = 100  # of one process in that folder; later micro-batches are counted only


class StoppedError(Exception):
    """A signal stopped the run, and everything is saved; the message says how to resume it."""


class NonFiniteError(UsageError):
    """The loss or its gradient is NaN or infinite; the message says where, and what to try."""


class NothingLeftError(Exception):
    """The checkpoint that a run resumes from is that of its last step."""


class StopAtSignal(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Saves and stops at the end of the step in which any process got SIGTERM or SIGUSR1.

    A signal reaches one process or several, but a checkpoint is written by all. So the handlers, which this class
    installs, only note the signal, and at the end of every step the processes agree, by a maximum.
    """

    def __init__(self) -> None:
        self.noted = 0
        self.stopped: signal.Signals | None = None
        self._earlier = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def _note(self, number: int, frame: Any) -> None:
        self.noted = number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Agrees with the other processes."""
        noted = int(gather(torch.tensor([self.noted], device=args.device)).max())
        if noted:
            self.stopped = signal.Signals(noted)
            control.should_log = control.should_save = control.should_training_stop = True

    def finish(self, args: Any, state: Any) -> None:
        """Raises StoppedError if a signal stopped the training, which would look finished; else restores handlers."""
        if self.stopped is not None:
            raise StoppedError(
                f"{self.stopped.name} stopped the run after step {state.global_step} of {state.max_steps}; "
                f"{args.output_dir}/checkpoint-{state.global_step} is saved. Start the same command again to go on."
            )
        for number, handler in self._earlier.items():
            signal.signal(number, handler)


def ignore_stop_signals(start: Callable[[int], None] | None, worker: int) -> None:
    """`worker_init_fn` of a DataLoader: a signal to the process group must not end workers before the run has saved."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if start is not None:
        start(worker)


class BeforeFirstStep(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Measures the recall of a new run, and ends a resumed run without steps left: the Trainer would do one more."""

    def __init__(self, measure: Callable[[], Any]) -> None:
        self.measure = measure

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Runs when the model is wrapped and on its device."""
        if state.global_step == 0:
            self.measure()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Runs before each epoch."""
        if state.global_step >= state.max_steps:
            raise NothingLeftError


class FiniteGuard(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Checks every loss and every gradient norm, and stops the run or skips the micro-batch where one is not finite.

    One such loss would spoil every weight of the adapter, and every later checkpoint. The micro-batch's samples are
    written to `output_dir/nonfinite/`. To skip it is to set its gradient to zero: the backward pass still runs, because
    the processes of a distributed run wait for each other in it. A loss that is divided by the tokens of the whole step
    keeps that divisor.

    Args:
        tokenizer: Decodes the samples.
        action: `"stop"` raises NonFiniteError; `"skip"` skips the micro-batch and counts it in `skipped`.
        engine: Returns DeepSpeed's engine, None without DeepSpeed.
    """

    def __init__(
        self, tokenizer: Any, action: Literal["stop", "skip"], engine: Callable[[], Any] = lambda: None
    ) -> None:
        self.tokenizer, self.action, self.engine = tokenizer, action, engine
        self.skipped = 0
        self.skips = False  # the micro-batch that was checked last
        self._weights: list[nn.Parameter] = []
        self._step_inputs: list[Mapping[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finds the trained weights, now that DDP, DeepSpeed or FSDP has wrapped the model."""
        self._weights = [weight for weight in kwargs["model"].parameters() if weight.requires_grad]
        if self.action == "skip":
            for weight in self._weights:  # a hook changes the gradient before DDP or DeepSpeed sees it
                weight.register_hook(lambda g: torch.zeros_like(g) if self.skips else g)  # type: ignore[no-untyped-call]

    def check_loss(self, loss: Tensor, inputs: Mapping[str, Any], args: Any, state: Any) -> None:
        """Checks the loss of a micro-batch, before its backward pass."""
        self._step_inputs.append(inputs)
        # Waits for the GPU, at no further cost: the Trainer does so for every loss (logging_nan_inf_filter).
        self.skips = not bool(torch.isfinite(loss))
        if self.skips:
            self._report(f"the loss is {float(loss.detach())}", [inputs], args, state, skip=self.action == "skip")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Checks the gradient of a step before the optimizer uses it; all processes see the same one.

        With fp16 the loss scaler does this, which lets steps overflow on purpose to find its scale. DeepSpeed has taken
        its step by now; it cannot be skipped, but nothing of it has been saved.
        """
        batches, self._step_inputs = self._step_inputs, []
        engine = self.engine()
        norm = float(engine.get_global_grad_norm() or 0) if engine else _gradient_norm(self._weights)
        if math.isfinite(norm) or args.fp16:
            return
        for weight in self._weights:
            weight.grad = None  # every optimizer passes over it, as if there had been no such step
        skip = self.action == "skip" and not engine
        self._report(f"the gradient's norm is {norm}, of a finite loss", batches, args, state, skip)

    def _report(self, fault: str, batches: list[Mapping[str, Any]], args: Any, state: Any, skip: bool) -> None:
        self.skipped += 1
        step, rank, folder = state.global_step + 1, args.process_index, Path(args.output_dir) / NONFINITE_FOLDER
        file = folder / f"step-{step}-rank-{rank}-{self.skipped}.json"
        if self.skipped <= MAX_FILES:
            samples = [sample for inputs in batches for sample in decode_samples(inputs, self.tokenizer)]
            folder.mkdir(parents=True, exist_ok=True)
            write_json(file, {"step": step, "rank": rank, "fault": fault, "samples": samples})
        if not skip:
            raise NonFiniteError(
                f"step {step}, rank {rank}: {fault}. The samples of that batch are in {file}. Look at "
                "them, or try a lower --learning_rate, and start again to resume from the newest checkpoint. Set "
                "--on_nonfinite skip to skip such batches."
            )


def _gradient_norm(weights: list[nn.Parameter]) -> float:
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def decode_samples(inputs: Mapping[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    """The samples of a micro-batch as text."""
    ids_BS, labels_BS = inputs["input_ids"], inputs["labels"]
    if "sample_lengths" in inputs:  # packed: all samples stand in one row
        pairs = list(zip(*(row[0].split(inputs["sample_lengths"]) for row in (ids_BS, labels_BS)), strict=True))
    else:
        real_BS = inputs["attention_mask"].bool()
        pairs = [(ids[real], labels[real]) for ids, labels, real in zip(ids_BS, labels_BS, real_BS, strict=True)]
    types = [{"task_type": task_type} for task_type in inputs["task_types"].tolist()] if "task_types" in inputs else []
    samples = []
    for ids, labels in pairs:
        answer = tokenizer.decode(labels[labels != IGNORE_INDEX].tolist())
        samples.append({"text": tokenizer.decode(ids), "answer": answer, "input_ids": ids.tolist()})
    return [{**sample, **of_type} for sample, of_type in zip(samples, types or [{}] * len(samples), strict=True)]


def print_totals_only(trainer: Trainer) -> None:
    """Has the console show the totals; values of the model's parts are in the trackers and in `trainer_state.json`."""

    def on_log(original: Callable[..., None], *args: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        original(*args, logs={name: value for name, value in logs.items() if PARTS_PREFIX not in name}, **kwargs)

    for callback in trainer.callback_handler.callbacks:
        if type(callback) in (PrinterCallback, ProgressCallback):
            callback.on_log = functools.partial(on_log, callback.on_log)


def log_figures(trainer: Trainer, files: Sequence[Path]) -> None:
    """Sends figures to TensorBoard and Weights & Biases, where the run logs to them."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            from matplotlib.image import imread
            from torch.utils.tensorboard import SummaryWriter

            with SummaryWriter(callback.logging_dir) as writer:
                for file in files:
                    writer.add_image(file.stem, imread(file), trainer.state.global_step, dataformats="HWC")
        elif isinstance(callback, WandbCallback):
            import wandb

            wandb.log({file.stem: wandb.Image(str(file)) for file in files})
