"""What a training run prints: the totals of each log, in one line that can be read.

The figures of the model's parts go to the trackers and to `trainer_state.json`, where they are curves.
"""

from __future__ import annotations

from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from loramoe.report.live import totals


class _TotalsOnly(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Runs when something is logged, after all trackers have it."""
        super().on_log(args, state, control, logs=totals(logs or {}), **kwargs)


class TotalsPrinter(_TotalsOnly, PrinterCallback):  # type: ignore[misc]
    """Prints the totals, as the Trainer does without a progress bar."""


class TotalsAndBar(_TotalsOnly, ProgressCallback):  # type: ignore[misc]
    """Prints the totals above the progress bar."""


def print_totals_only(trainer: Trainer) -> None:
    """Puts one of these callbacks in the place of the Trainer's own; a notebook's table is left as it is.

    Args:
        trainer: Whose callbacks they are.
    """
    for installed, ours in ((PrinterCallback, TotalsPrinter), (ProgressCallback, TotalsAndBar)):
        if trainer.pop_callback(installed) is not None:
            trainer.add_callback(ours)
