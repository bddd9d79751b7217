"""A loss that is NaN or infinite: which rows it came from, and either the end of the run or a micro-batch left out.

One such loss spoils every weight of the adapter with the next step of the optimizer, and every checkpoint after that.
So it is looked at before its gradient is used. The rows go to `output_dir/nonfinite/`, for whoever has to find out why.

To leave a micro-batch out is to let its gradient be zero. The backward still runs, because the processes of a
distributed run wait for each other in it; hooks on the trained weights put zeros in place of what it brings, before DDP
or DeepSpeed see any of it. A loss divided by the tokens of the whole step keeps that divisor: the other micro-batches
of the step count as they would have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loramoe.data import IGNORE_INDEX
from loramoe.training.files import write_json

FOLDER: Final = "nonfinite"
MAX_FILES: Final = 100
"""Reports of one process; what comes after them is counted, and not written."""


class NonFiniteError(ArithmeticError):
    """The loss or its gradient is NaN or infinite; the message says where, and what to try."""


class FiniteGuard(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Looks at every loss and every gradient of a training, and acts where one is not finite.

    Args:
        tokenizer: To write rows as text.
        action: `"stop"` raises NonFiniteError; `"skip"` leaves the micro-batch out and counts it.
        engine: Gives DeepSpeed's engine, None where DeepSpeed is not used.

    Attributes:
        skipped: How many micro-batches, or whole steps, this process has left out.
        leaves_out: Whether the micro-batch that was looked at last is left out.
    """

    def __init__(
        self, tokenizer: Any, action: Literal["stop", "skip"], engine: Callable[[], Any] = lambda: None
    ) -> None:
        self.tokenizer, self.action, self.engine = tokenizer, action, engine
        self.skipped = 0
        self.leaves_out = False
        self._weights: list[nn.Parameter] = []
        self._of_step: list[Mapping[str, Any]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finds the trained weights, now that DDP, DeepSpeed or FSDP have made of the model what they make of it."""
        self._weights = [weight for weight in kwargs["model"].parameters() if weight.requires_grad]
        if self.action == "skip":
            for weight in self._weights:
                weight.register_hook(self._gradient)  # type: ignore[no-untyped-call]

    def check_loss(self, loss: Tensor, inputs: Mapping[str, Any], args: TrainingArguments, state: TrainerState) -> None:
        """Looks at the loss of a micro-batch, before its backward.

        Args:
            loss: The loss, a scalar.
            inputs: What the model was called with.
            args: Of the Trainer.
            state: Of the Trainer.

        Raises:
            NonFiniteError: If the loss is not finite, and the action is to stop.
        """
        self._of_step.append(inputs)
        # Waits for the GPU, which costs nothing more: the Trainer does it for every loss (logging_nan_inf_filter).
        self.leaves_out = not bool(torch.isfinite(loss))
        if self.leaves_out:
            what = f"the loss is {float(loss.detach())}"
            self._act(what, [inputs], args, state.global_step + 1, skip=self.action == "skip")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks at the gradient of a step before the optimizer takes it; all processes see the same one.

        With fp16 that is the loss scaler's task, which lets steps overflow on purpose to find its scale. DeepSpeed has
        taken its step by now; what it took cannot be left out, but nothing of it has been saved.

        Raises:
            NonFiniteError: If the gradient is not finite, and the action is to stop, or DeepSpeed is used.
        """
        batches, self._of_step = self._of_step, []
        engine = self.engine()
        norm = float(engine.get_global_grad_norm() or 0) if engine else _norm(self._weights)
        if math.isfinite(norm) or args.fp16:
            return
        for weight in self._weights:
            weight.grad = None  # which every optimizer passes over, as if there had been no such step
        what = f"the gradient's norm is {norm}, of a finite loss"
        self._act(what, batches, args, state.global_step + 1, skip=self.action == "skip" and not engine)

    def _gradient(self, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient) if self.leaves_out else gradient

    def _act(self, what: str, batches: list[Mapping[str, Any]], args: TrainingArguments, step: int, skip: bool) -> None:
        self.skipped += 1
        folder = Path(args.output_dir) / FOLDER
        file = folder / f"step-{step}-rank-{args.process_index}-{self.skipped}.json"
        if self.skipped <= MAX_FILES:
            rows = [row for inputs in batches for row in rows_of(inputs, self.tokenizer)]
            folder.mkdir(parents=True, exist_ok=True)
            write_json(file, {"step": step, "rank": args.process_index, "what": what, "rows": rows})
        if not skip:
            raise NonFiniteError(
                f"step {step}, rank {args.process_index}: {what}. The rows of that batch are in {file}. Look at them, "
                "or try a lower --learning_rate, and start again: it goes on from the newest checkpoint. To leave "
                "such batches out, say --on_nonfinite skip."
            )


def _norm(weights: list[nn.Parameter]) -> float:
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def rows_of(inputs: Mapping[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    """The rows of a micro-batch as a person reads them.

    Args:
        inputs: What the model was called with: M samples, padded or packed.
        tokenizer: The model's.

    Returns:
        For each sample `text`, `answer` (what of it is learnt), `input_ids`, and `task_type` if there is one.
    """
    types = inputs.get("task_types")
    rows: list[dict[str, Any]] = []
    for number, (ids, labels) in enumerate(_samples(inputs)):
        answer = labels[labels != IGNORE_INDEX].tolist()
        row = {"text": tokenizer.decode(ids), "answer": tokenizer.decode(answer), "input_ids": ids.tolist()}
        rows.append({**row, **({} if types is None else {"task_type": int(types[number])})})
    return rows


def _samples(inputs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Token ids and labels of each sample, without padding."""
    ids_BS, labels_BS = inputs["input_ids"], inputs["labels"]
    if "cu_seq_lens_q" in inputs:  # packed: all samples stand in one row
        bounds = inputs["cu_seq_lens_q"].tolist()
        return [(ids_BS[0, a:b], labels_BS[0, a:b]) for a, b in itertools.pairwise(bounds)]
    real_BS = inputs["attention_mask"].bool()
    return [(ids[real], labels[real]) for ids, labels, real in zip(ids_BS, labels_BS, real_BS, strict=True)]
