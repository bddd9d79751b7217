"""Callbacks of the Trainer: stop at a signal, guard against NaN and infinity, print one short line per log."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.trainer_callback import ProgressCallback

from loramoe.analysis.routing import PARTS_PREFIX
from loramoe.data import IGNORE_INDEX
from loramoe.training.distributed import max_over_ranks
from loramoe.utils import STOP_SIGNALS, UsageError, write_json

NONFINITE_FOLDER: Final = "nonfinite"
MAX_FILES: Final = 100
"""Files of one process in that folder; later micro-batches are counted only."""


class StoppedError(Exception):
    """A signal stopped the run, and everything is saved; the message says how to resume it."""


class NonFiniteError(UsageError):
    """The loss or its gradient is NaN or infinite; the message says where, and what to try."""


class StopAtSignal(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Saves and stops at the end of the step in which any process got SIGTERM or SIGUSR1.

    A signal reaches one process or several, but a checkpoint is written by all. So the handler only notes the signal,
    and at the end of every step the processes agree, by one maximum over a single integer.

    Attributes:
        stopped: The signal that stopped the training, None if there was none.
    """

    def __init__(self) -> None:
        self.stopped: signal.Signals | None = None
        self._noted = 0
        self._earlier: dict[signal.Signals, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Installs the handlers."""
        self._earlier = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def _note(self, number: int, frame: Any) -> None:
        self._noted = number

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Agrees with the other processes."""
        noted = max_over_ranks(self._noted, args.device)
        if noted:
            self.stopped = signal.Signals(noted)
            control.should_log = control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restores the earlier handlers, unless a signal is about to end the process."""
        if self.stopped is None:
            for number, handler in self._earlier.items():
                signal.signal(number, handler)

    def raise_if_stopped(self, args: TrainingArguments, state: TrainerState) -> None:
        """Raises StoppedError if a signal stopped the training, which would otherwise look finished."""
        if self.stopped is not None:
            raise StoppedError(
                f"{self.stopped.name} stopped the run after step {state.global_step} of {state.max_steps}; "
                f"{args.output_dir}/checkpoint-{state.global_step} is saved. Start the same command again to go on."
            )


class NothingLeftError(Exception):
    """The checkpoint that a run resumes from is that of its last step."""


class BeforeFirstStep(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Measures the recall of a new run, and ends a resumed run without steps left: the Trainer would do one more."""

    def __init__(self, measure: Callable[[], Any]) -> None:
        self.measure = measure

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Runs when the training begins or resumes."""
        if state.global_step == 0:  # the model is wrapped and on its device now
            self.measure()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Runs before each epoch."""
        if state.global_step >= state.max_steps:
            raise NothingLeftError


def ignore_stop_signals(start: Callable[[int], None] | None, worker: int) -> None:
    """`worker_init_fn` of a DataLoader: a signal to the process group must not end workers before the run has saved."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if start is not None:
        start(worker)


class FiniteGuard(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Checks every loss and every gradient norm, and stops the run or skips the micro-batch where one is not finite.

    One such loss would spoil every weight of the adapter, and every later checkpoint. The micro-batch's samples are
    written to `output_dir/nonfinite/`. To skip it is to set its gradient to zero: the backward pass still runs, because
    the processes of a distributed run wait for each other in it. A loss that is divided by the tokens of the whole step
    keeps that divisor.

    Args:
        tokenizer: Decodes the samples.
        action: `"stop"` raises NonFiniteError; `"skip"` skips the micro-batch and counts it.
        engine: Returns DeepSpeed's engine, None without DeepSpeed.

    Attributes:
        skipped: Number of micro-batches, or whole steps, that this process has skipped.
        skips: Whether the micro-batch that was checked last is skipped.
    """

    def __init__(
        self, tokenizer: Any, action: Literal["stop", "skip"], engine: Callable[[], Any] = lambda: None
    ) -> None:
        self.tokenizer, self.action, self.engine = tokenizer, action, engine
        self.skipped = 0
        self.skips = False
        self._weights: list[nn.Parameter] = []
        self._step_inputs: list[Mapping[str, Any]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finds the trained weights, now that DDP, DeepSpeed or FSDP has wrapped the model."""
        self._weights = [weight for weight in kwargs["model"].parameters() if weight.requires_grad]
        if self.action == "skip":
            for weight in self._weights:  # a hook changes the gradient before DDP or DeepSpeed sees it
                weight.register_hook(self._zero_if_skipped)  # type: ignore[no-untyped-call]

    def check_loss(self, loss: Tensor, inputs: Mapping[str, Any], args: TrainingArguments, state: TrainerState) -> None:
        """Checks the loss of a micro-batch, before its backward pass."""
        self._step_inputs.append(inputs)
        # Waits for the GPU, at no further cost: the Trainer does so for every loss (logging_nan_inf_filter).
        self.skips = not bool(torch.isfinite(loss))
        if self.skips:
            fault = f"the loss is {float(loss.detach())}"
            self._report(fault, [inputs], args, state.global_step + 1, skip=self.action == "skip")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
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
        fault = f"the gradient's norm is {norm}, of a finite loss"
        self._report(fault, batches, args, state.global_step + 1, skip=self.action == "skip" and not engine)

    def _zero_if_skipped(self, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient) if self.skips else gradient

    def _report(
        self, fault: str, batches: list[Mapping[str, Any]], args: TrainingArguments, step: int, skip: bool
    ) -> None:
        self.skipped += 1
        folder = Path(args.output_dir) / NONFINITE_FOLDER
        file = folder / f"step-{step}-rank-{args.process_index}-{self.skipped}.json"
        if self.skipped <= MAX_FILES:
            samples = [sample for inputs in batches for sample in decode_samples(inputs, self.tokenizer)]
            folder.mkdir(parents=True, exist_ok=True)
            write_json(file, {"step": step, "rank": args.process_index, "fault": fault, "samples": samples})
        if not skip:
            raise NonFiniteError(
                f"step {step}, rank {args.process_index}: {fault}. The samples of that batch are in {file}. Look at "
                "them, or try a lower --learning_rate, and start again to resume from the newest checkpoint. Set "
                "--on_nonfinite skip to skip such batches."
            )


def _gradient_norm(weights: list[nn.Parameter]) -> float:
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def decode_samples(inputs: Mapping[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    """The samples of a micro-batch as text."""
    types = inputs.get("task_types")
    samples: list[dict[str, Any]] = []
    for number, (ids, labels) in enumerate(_split_samples(inputs)):
        answer = labels[labels != IGNORE_INDEX].tolist()
        sample = {"text": tokenizer.decode(ids), "answer": tokenizer.decode(answer), "input_ids": ids.tolist()}
        samples.append(sample if types is None else {**sample, "task_type": int(types[number])})
    return samples


def _split_samples(inputs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Token ids and labels of each sample, without padding."""
    ids_BS, labels_BS = inputs["input_ids"], inputs["labels"]
    if "cu_seq_lens_q" in inputs:  # packed: all samples stand in one row
        bounds = inputs["cu_seq_lens_q"].tolist()
        return [(ids_BS[0, a:b], labels_BS[0, a:b]) for a, b in itertools.pairwise(bounds)]
    real_BS = inputs["attention_mask"].bool()
    return [(ids[real], labels[real]) for ids, labels, real in zip(ids_BS, labels_BS, real_BS, strict=True)]


class _TotalsOnly(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Prints the totals; values of the model's parts are in the trackers and in `trainer_state.json` by now."""
        totals = {name: value for name, value in (logs or {}).items() if PARTS_PREFIX not in name}
        super().on_log(args, state, control, logs=totals, **kwargs)


class TotalsPrinter(_TotalsOnly, PrinterCallback):  # type: ignore[misc]
    """Prints the totals, as the Trainer does without a progress bar."""


class TotalsProgress(_TotalsOnly, ProgressCallback):  # type: ignore[misc]
    """Prints the totals above the progress bar."""


def print_totals_only(trainer: Trainer) -> None:
    """Replaces the Trainer's console callbacks by these; a notebook's table stays as it is."""
    for installed, ours in ((PrinterCallback, TotalsPrinter), (ProgressCallback, TotalsProgress)):
        if trainer.pop_callback(installed) is not None:
            trainer.add_callback(ours)


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
