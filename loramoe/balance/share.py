"""The share of an optimizer step that a micro-batch stands for, in the LM loss and in the constraint alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100  # label of a token that is not predicted, by the convention of torch's cross entropy
COUNTED_LABELS = ("shift_labels", "labels", "start_positions")  # in this order: what a model's loss is computed from


def share_of_step(
    call: Mapping[str, Any], skips_first_label: bool, device: torch.device | None = None
) -> Tensor | float:
    """Return the share of an optimizer step that a micro-batch's loss stands for.

    Given `num_items_in_batch`, the loss of a micro-batch is a sum over its labels divided by the labels of the whole
    step (all accumulated micro-batches, all ranks). Without the same factor the constraint would count once for each
    micro-batch.

    Args:
        call: Arguments of the model by name: `num_items_in_batch`, and `shift_labels`, `labels` or `start_positions`.
        skips_first_label: Whether `num_items_in_batch` leaves out the first label of each row, which a causal language
            model does not predict.
        device: Of the result. Default: the labels' device.

    Returns:
        This micro-batch's labels / num_items_in_batch; 1 where no `num_items_in_batch` was given.

    Raises:
        ValueError: If there is a `num_items_in_batch` but no labels.
    """
    items = call.get("num_items_in_batch")
    if items is None:
        return 1.0
    name, labels = next(((name, call[name]) for name in COUNTED_LABELS if call.get(name) is not None), ("", None))
    if labels is None:
        raise ValueError(
            f"num_items_in_batch={items} was given without labels, so the share of this micro-batch in the step is "
            "unknown. Pass labels too, or leave num_items_in_batch out."
        )
    counted = labels[..., 1:] if name == "labels" and skips_first_label else labels
    device = labels.device if device is None else device
    share: Tensor = (counted != IGNORE_INDEX).sum().to(device) / torch.as_tensor(items, device=device)
    return share


def balance_loss(
    outputs: Any,
    labels: Tensor | None,
    num_items_in_batch: Tensor | int | None = None,
    device: torch.device | None = None,
) -> Tensor | float:
    """Return what to add to a loss that is computed from a model's outputs, as by the Trainer's `compute_loss_func`.

    Args:
        outputs: What the model returned. In training, given task types and no labels, it holds the weighted constraint.
        labels: The labels of the micro-batch, which the model was not given.
        num_items_in_batch: Number of labels of the whole step; None where the loss is a mean over the micro-batch.
        device: Of the result. Default: the constraint's device.

    Returns:
        The weighted constraint times this micro-batch's share of the step; 0 where there is none, as in evaluation.
    """
    weighted: Tensor | None = outputs.get("balance_loss") if isinstance(outputs, Mapping) else None
    if weighted is None:
        return 0.0
    device = weighted.device if device is None else device
    call = {"labels": labels, "num_items_in_batch": num_items_in_batch}
    return share_of_step(call, outputs["skips_first_label"], device) * weighted.to(device)
