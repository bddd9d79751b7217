"""The localized balancing constraint: pure functions, from gates to one number a linear.

In the symbols of arXiv 2312.09979 (Q importance, I coefficient, Z = I ∘ Q):

    Q_ME = Σ over the real tokens of sample m of g_e
    I_ME = 1 + blc_alpha where type(expert e) == task_type(sample m), else 1 − blc_alpha
    blc  = var(Z) / (mean(Z)² + 1e-10)                    unbiased variance over all M·E entries of one linear

The paper prints σ²/μ; its author corrected that to the squared coefficient of variation, which is what the released
code computes. Minimising it makes Z equal everywhere, so the group whose type *matches* ends with less gate weight:
Q_match / Q_other = (1 − a) / (1 + a). `blc_target="match"` divides by I instead, and the matching group gets more.

Padding never counts: Q is a sum over the tokens that the mask calls real. Nothing here knows of PEFT or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

BlcTarget = Literal["paper", "match"]
BLC_TARGETS: tuple[BlcTarget, ...] = get_args(BlcTarget)
EPSILON = 1e-10  # of the released code: keeps an all-zero Z finite
IGNORE_INDEX = -100  # label of a token that is not predicted, by the convention of torch's cross entropy


def importance(gates: Tensor, mask: Tensor | None = None) -> Tensor:
    """Gate weight that each expert received from each sample: `Q_ME = Σ_s mask_s · g_se`.

    Args:
        gates: Gates of one linear [M, S, E], or of several [L, M, S, E], float32 or float64.
        mask: Real tokens, [M, S], bool or 0/1; None where every token is real.

    Returns:
        Importance [M, E] or [L, M, E], in the dtype of the gates.
    """
    if mask is None:
        return gates.sum(dim=-2)
    return (gates * mask.to(gates.dtype).unsqueeze(-1)).sum(dim=-2)


def match_types(task_types: Tensor, expert_types: Sequence[int]) -> Tensor:
    """Which expert has the type of which sample.

    Args:
        task_types: Task type of each sample, [M], integer.
        expert_types: Type of each expert, E ints.

    Returns:
        Bool [M, E].

    Raises:
        ValueError: If a sample has a task type that no expert has, or task_types is not an integer vector.
    """
    check_task_types(task_types, expert_types)
    experts_E = torch.tensor(expert_types, device=task_types.device, dtype=task_types.dtype)
    return task_types.unsqueeze(-1) == experts_E


def check_task_types(task_types: Tensor, expert_types: Sequence[int]) -> None:
    """Refuse task types that no expert has: such a sample would push every expert alike, unnoticed.

    Args:
        task_types: Task type of each sample, [M], integer.
        expert_types: Type of each expert, E ints.

    Raises:
        ValueError: If a sample has a task type that no expert has, or task_types is not an integer vector.
    """
    if task_types.dim() != 1 or task_types.is_floating_point() or task_types.dtype == torch.bool:
        raise ValueError(
            "task_types must be one integer for each sample, a tensor [B] of int64; got "
            f"{task_types.dtype} of shape {list(task_types.shape)}."
        )
    unknown = sorted(set(task_types.tolist()) - set(expert_types))
    if unknown:
        raise ValueError(
            f"task_types has {unknown[0]}, which is the type of no expert; the experts have types "
            f"{sorted(set(expert_types))}. Mend the task_type of the data, or give that type to some experts "
            "with expert_types."
        )


def coefficient(
    task_types: Tensor, expert_types: Sequence[int], blc_alpha: float, blc_target: BlcTarget = "paper"
) -> Tensor:
    """How much the importance of each expert counts for each sample: I_ME, or 1 / I_ME for `blc_target="match"`.

    Args:
        task_types: Task type of each sample, [M], integer.
        expert_types: Type of each expert, E ints.
        blc_alpha: a in 1 ± a, within [0, 1).
        blc_target: "paper" multiplies the importance by I, as the released code does: the matching group ends with less
            gate weight. "match" divides by it: the matching group ends with more.

    Returns:
        Coefficients [M, E], float32.

    Raises:
        ValueError: If a sample has a task type that no expert has.
    """
    matches_ME = match_types(task_types, expert_types)
    sign_ME = torch.where(matches_ME, 1.0, -1.0)
    I_ME = 1.0 + blc_alpha * sign_ME
    return I_ME if blc_target == "paper" else 1.0 / I_ME


def squared_cv(Z: Tensor) -> Tensor:
    """Squared coefficient of variation over the last two dimensions: `var(Z) / (mean(Z)² + 1e-10)`, unbiased variance.

    Args:
        Z: Weighted importance [M, E] or [L, M, E], with M·E of at least 2.

    Returns:
        A scalar, or [L]. Zero iff all entries of a linear are equal.

    Raises:
        ValueError: If there is only one entry, whose variance does not exist.
    """
    entries = Z.flatten(-2)
    if entries.shape[-1] < 2:
        raise ValueError(
            f"the balancing constraint needs at least 2 entries (samples × experts); got Z of shape {list(Z.shape)}. "
            "Use lora_nums=2 or more."
        )
    return entries.var(dim=-1) / (entries.mean(dim=-1) ** 2 + EPSILON)


def localized_balance(importance: Tensor, coefficient: Tensor) -> Tensor:
    """The localized balancing constraint of each linear: squared_cv(I ∘ Q).

    Args:
        importance: Q [M, E] or [L, M, E].
        coefficient: I [M, E].

    Returns:
        A scalar, or [L], in the dtype of the importance.
    """
    return squared_cv(importance * coefficient.to(importance.dtype))


def share_of_step(
    call: Mapping[str, Any], skips_first_label: bool, device: torch.device | None = None
) -> Tensor | float:
    """The share of an optimizer step that a micro-batch's loss stands for.

    Given `num_items_in_batch`, the loss of a micro-batch is a sum over its labels divided by the labels of the whole
    step (all accumulated micro-batches, all ranks). The constraint needs the same factor, or it would count once for
    every micro-batch.

    Args:
        call: What the model was called with, by name: `num_items_in_batch`, and `shift_labels`, `labels` or
            `start_positions`, whichever the loss is computed from.
        skips_first_label: Whether `num_items_in_batch` leaves out the first label of each row, as no token of a causal
            language model predicts it. False where a row has a single label, or each token its own.
        device: Where the share is wanted; by default where the labels are.

    Returns:
        This micro-batch's labels / num_items_in_batch; 1 where no `num_items_in_batch` was given.

    Raises:
        ValueError: If there is a `num_items_in_batch`, but nothing to be counted.
    """
    items = call.get("num_items_in_batch")
    if items is None:
        return 1.0
    labels = _counted_labels(call, skips_first_label)
    device = labels.device if device is None else device
    return (labels != IGNORE_INDEX).sum().to(device) / torch.as_tensor(items, device=device)


def _counted_labels(call: Mapping[str, Any], skips_first_label: bool) -> Tensor:
    """Those of a micro-batch's labels that `num_items_in_batch` counts, but for the ignored ones."""
    for name in ("shift_labels", "labels", "start_positions"):
        labels: Tensor | None = call.get(name)
        if labels is not None:
            return labels[..., 1:] if name == "labels" and skips_first_label else labels
    raise ValueError(
        f"num_items_in_batch={call['num_items_in_batch']} was given without labels, so the share of this micro-batch "
        "in the step cannot be told. Pass labels too, or leave num_items_in_batch out."
    )


def balance_loss(
    outputs: Any,
    labels: Tensor | None,
    num_items_in_batch: Tensor | int | None = None,
    device: torch.device | None = None,
) -> Tensor | float:
    """What to add to a loss that is computed from a model's outputs, as by the Trainer's `compute_loss_func`.

    Args:
        outputs: What the model returned. In training, given task types and no labels, it holds the weighted constraint.
        labels: The labels of the micro-batch, which the model was not given.
        num_items_in_batch: Number of labels of the whole step, as the Trainer hands it over. None where the loss is a
            mean over the micro-batch.
        device: Where it is wanted; by default where the constraint is.

    Returns:
        The weighted constraint, times this micro-batch's share of the step; 0 where there is none, as in evaluation.

    Raises:
        ValueError: If there is a `num_items_in_batch`, but there are no labels.
    """
    weighted: Tensor | None = outputs.get("balance_loss") if isinstance(outputs, Mapping) else None
    if weighted is None:
        return 0.0
    device = weighted.device if device is None else device
    call = {"labels": labels, "num_items_in_batch": num_items_in_batch}
    return share_of_step(call, outputs["skips_first_label"], device) * weighted.to(device)
