"""What the trainers of transformers and TRL need to add the constraint, and how they count labels."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from loramoe.balance.constraint import balance_loss, share_of_step

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

COUNTS_EVERY_LABEL = Version(importlib.metadata.version("transformers")) < Version("5.10")


def skips_first_label(model: nn.Module) -> bool:
    """Return whether the Trainer leaves the first label of each row out of `num_items_in_batch`.

    Before transformers 5.10 it never does; since then for each model whose loss shifts labels.
    """
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    return not COUNTS_EVERY_LABEL and LOSS_MAPPING.get(getattr(model, "loss_type", None)) is ForCausalLMLoss


def declare_task_types(model_class: type) -> None:
    """Add `task_types=None` to the signature that a model's forward shows.

    The Trainer reads that signature to decide which columns of a data set the model can use.
    """
    forward: Callable[..., Any] = model_class.forward  # type: ignore[attr-defined]
    signature = inspect.signature(forward)
    if "task_types" in signature.parameters:
        return
    declared = inspect.Parameter(
        "task_types", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="torch.LongTensor | None"
    )
    parameters = sorted([*signature.parameters.values(), declared], key=lambda parameter: parameter.kind)
    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]


def extend_label_smoother(label_smoother: type) -> None:
    """Have the Trainer's label smoothing, which computes the loss from the logits, add the constraint.

    `num_items_in_batch` is passed since transformers 5.15; before, each micro-batch counts whole.
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
        labels = inputs.get("labels")  # some losses take them out of the inputs
        with collect_aux_loss() as collected:
            result = compute(self, model, inputs, return_outputs, num_items_in_batch)
        loss, *outputs = result if return_outputs else (result,)
        # A forward without gradient is one that TRL makes for its metrics.
        aux_losses = [weighted.to(loss.device) for weighted in collected if weighted.requires_grad]
        if aux_losses:
            call = {"labels": labels, "num_items_in_batch": num_items_in_batch}
            share = share_of_step(call, vars(self).get("_loss_shifts_labels", False), loss.device)
            over_ranks = self.args.average_tokens_across_devices and num_items_in_batch is not None
            loss = loss + share * sum(aux_losses) * (self.accelerator.num_processes if over_ranks else 1)
        return (loss, *outputs) if return_outputs else loss

    sft_trainer.compute_loss = compute_loss  # type: ignore[attr-defined]
