"""Trainers that compute the loss themselves, and so have to add the constraint: transformers' smoothing, and TRL."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loramoe.balance import balance_loss, share_of_step

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor, nn


def extend_label_smoother(label_smoother: type) -> None:
    """Have the Trainer's label smoothing add the constraint.

    With smoothing, the Trainer keeps the labels and computes the loss from the logits. The constraint then comes as
    `outputs.balance_loss`. `num_items_in_batch` is passed since transformers 5.15; before that each micro-batch counts
    whole, in the smoothed loss too.
    """
    smooth: Callable[..., Tensor] = label_smoother.__call__
    if "__wrapped__" in vars(smooth):
        return

    @functools.wraps(smooth)
    def __call__(self: Any, model_output: Any, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        loss = smooth(self, model_output, labels, *args, **kwargs)
        return loss + balance_loss(model_output, labels, kwargs.get("num_items_in_batch"), loss.device)

    label_smoother.__call__ = __call__  # type: ignore[method-assign]


def extend_sft_trainer(sft_trainer: type, collect_aux_loss: Callable[[], AbstractContextManager[list[Tensor]]]) -> None:
    """Have TRL's SFTTrainer add the constraint.

    Its default loss since TRL 1.x is a sum of `outputs.log_probs`, which does not read `outputs.loss`.
    """
    compute = sft_trainer.compute_loss  # type: ignore[attr-defined]
    if "__wrapped__" in vars(compute):
        return

    @functools.wraps(compute)
    def compute_loss(
        self: Any, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with collect_aux_loss() as collected:
            result = compute(self, model, inputs, return_outputs, num_items_in_batch)
        loss, *outputs = result if return_outputs else (result,)
        # A forward without gradient is one that TRL makes for its metrics.
        aux_losses = [weighted.to(loss.device) for weighted in collected if weighted.requires_grad]
        if aux_losses:
            call = {"labels": inputs["labels"], "num_items_in_batch": num_items_in_batch}
            share = share_of_step(call, vars(self).get("_loss_shifts_labels", False), loss.device)
            over_ranks = self.args.average_tokens_across_devices and num_items_in_batch is not None
            loss = loss + share * sum(aux_losses) * (self.accelerator.num_processes if over_ranks else 1)
        return (loss, *outputs) if return_outputs else loss

    sft_trainer.compute_loss = compute_loss  # type: ignore[attr-defined]
