"""The localized balancing constraint: pure functions of tensors.

In the symbols of arXiv 2312.09979, section "Localized Balancing Constraint":

    Q_ME = mean over the real tokens of sample m of g_e      ("mean"; with "sum" their sum, as in the original code)
    I_ME = 1 + blc_alpha where type(expert e) == task_type(sample m), else 1 − blc_alpha
    Z    = Q / I  ("match")   or   Q · I  ("paper")
    blc  = var(Z) / (mean(Z)² + 1e-10)                       unbiased, over all M·E entries of one layer

Q is W · gates / (real tokens of sample m), where W[m, n] is 1 if token n is a real token of sample m, else 0. Nothing
here waits for the device.

Minimising blc makes Z even. Under "match" the experts of a sample's own type end with more gate weight,
Q_own / Q_other = (1 + a) / (1 − a); under "paper", the direction of the original code, with less. The paper prints
σ²/μ; its author corrected that to σ²/μ², which the original code computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

BlcTarget = Literal["match", "paper"]
BLC_TARGETS: tuple[BlcTarget, ...] = get_args(BlcTarget)
BlcImportance = Literal["mean", "sum"]
BLC_IMPORTANCES: tuple[BlcImportance, ...] = get_args(BlcImportance)
EPSILON = 1e-10  # of the original code: keeps an all-zero Z finite
IGNORE_INDEX = -100  # label of a token that is not predicted, by the convention of torch's cross entropy
COUNTED_LABELS = ("shift_labels", "labels", "start_positions")  # in this order: what a model's loss is computed from


def coefficient(
    task_types_M: Tensor, expert_types: Sequence[int], blc_alpha: float, blc_target: BlcTarget = "match"
) -> Tensor:
    """Return what the importance is multiplied with: I_ME under "paper", 1 / I_ME under "match".

    Args:
        task_types_M: Task type of each sample, [M] integer.
        expert_types: Type of each expert, E ints.
        blc_alpha: a in 1 ± a, within [0, 1).
        blc_target: Direction of the constraint.

    Returns:
        Coefficients [M, E], float32.
    """
    I_ME = 1.0 + blc_alpha * torch.where(match_types(task_types_M, expert_types), 1.0, -1.0)
    return I_ME if blc_target == "paper" else 1.0 / I_ME


def match_types(task_types_M: Tensor, expert_types: Sequence[int]) -> Tensor:
    """Return which expert has the type of which sample, bool [M, E]."""
    experts_E = torch.tensor(expert_types, device=task_types_M.device, dtype=task_types_M.dtype)
    return task_types_M.unsqueeze(-1) == experts_E


def squared_cv(Z_ME: Tensor, real_M: Tensor | None = None) -> Tensor:
    """Return the squared coefficient of variation over the last two dimensions: var(Z) / (mean(Z)² + 1e-10).

    Args:
        Z_ME: [M, E], or [L, M, E] for L layers at once.
        real_M: Which samples count, bool [M]: a sample without a real token has no importance. Default: all.

    Returns:
        A scalar, or [L]: the unbiased variance over the counted entries by their squared mean; 0 for fewer than two.
    """
    if real_M is None:
        real_M = torch.ones(Z_ME.shape[-2], dtype=torch.bool, device=Z_ME.device)
    # Weights instead of a selection: a selection would wait for the device, to learn its size.
    weight_M1 = real_M.to(Z_ME.dtype).unsqueeze(-1)
    count = weight_M1.sum() * Z_ME.shape[-1]
    mean_L = (Z_ME * weight_M1).sum(dim=(-2, -1)) / count.clamp(min=1)
    deviation_ME = (Z_ME - mean_L[..., None, None]) * weight_M1
    variance_L = deviation_ME.square().sum(dim=(-2, -1)) / (count - 1).clamp(min=1)
    return variance_L / (mean_L.square() + EPSILON)


def localized_balance(importance_ME: Tensor, coefficient_ME: Tensor, real_M: Tensor | None = None) -> Tensor:
    """Return the localized balancing constraint: squared_cv(coefficient · importance).

    Args:
        importance_ME: Q of one layer [M, E], or of L layers [L, M, E].
        coefficient_ME: What `coefficient` returned, [M, E].
        real_M: Which samples have a real token, bool [M]. Default: all.

    Returns:
        A scalar, or [L]; 0 for a single expert.
    """
    if importance_ME.shape[-1] == 1:
        return importance_ME.new_zeros(importance_ME.shape[:-2])
    return squared_cv(importance_ME * coefficient_ME.to(importance_ME.dtype), real_M)


@dataclass
class Membership:
    """The M samples of a batch of B rows and S columns.

    Attributes:
        W: 1 where a token is a real token of a sample, else 0; float32 [B, 1, S] where each row is a sample, else
            [1, M, B·S].
        tokens_M: Number of real tokens of each sample, float32.
        started_samples: Number of samples that the position ids start; None where each row is a sample.
        shape: B and S.
    """

    W: Tensor
    tokens_M: Tensor
    started_samples: Tensor | None
    shape: tuple[int, int]

    def importance(self, gates: Tensor, kind: BlcImportance = "mean") -> Tensor:
        """Return Q [M, E] of one layer from its gates [B, S, E] or [B·S, E], in their dtype and on their device."""
        Q_ME = (self.W.to(gates) @ gates.reshape(len(self.W), -1, gates.shape[-1])).flatten(0, 1)
        return Q_ME if kind == "sum" else Q_ME / self.tokens_M.to(gates).clamp(min=1).unsqueeze(-1)

    def covers(self, gates: Tensor) -> bool:
        """Return whether gates are those of this batch's tokens, row by row."""
        return tuple(gates.shape[:-1]) in (self.shape, (math.prod(self.shape),))

    def token_mismatch_message(self, layer: str, gates: Tensor | None) -> str:
        """Return how an error begins about a layer whose gates (None: it was not called) this does not cover."""
        seen = [0] if gates is None else list(gates.shape[:-1])
        batch = f"{list(self.shape)} = {math.prod(self.shape)}"
        return f"{layer} saw {math.prod(seen)} tokens, the batch has {batch}, not {seen}"


def rows_as_samples(mask_BS: Tensor) -> Membership:
    """Return the membership of a batch in which each row is a sample."""
    B, S = mask_BS.shape
    real_BS = mask_BS.to(torch.float32)
    return Membership(real_BS.unsqueeze(1), real_BS.sum(-1), None, (B, S))


def positions_as_samples(position_ids_BS: Tensor, samples: int) -> Membership:
    """Return the membership of a batch without padding, whose rows may hold several samples.

    A sample starts with each row, and wherever the position ids do not continue by one.
    """
    B, S = position_ids_BS.shape
    starts_BS = torch.ones_like(position_ids_BS, dtype=torch.bool)
    starts_BS[:, 1:] = position_ids_BS.diff() != 1
    sample_N = starts_BS.flatten().cumsum(0) - 1
    W_MN = (torch.arange(samples, device=sample_N.device).unsqueeze(-1) == sample_N).to(torch.float32)
    return Membership(W_MN.unsqueeze(0), W_MN.sum(-1), starts_BS.sum(), (B, S))


def share_of_step(
    call: Mapping[str, Any], skips_first_label: bool, device: torch.device | None = None
) -> Tensor | float:
    """Return the share of an optimizer step that a micro-batch's loss stands for.

    Given `num_items_in_batch`, the loss of a micro-batch is a sum over its labels divided by the labels of the whole
    step. Without the same factor the constraint would count once for each micro-batch.

    Args:
        call: Arguments of the model by name: `num_items_in_batch`, and `shift_labels`, `labels` or `start_positions`.
        skips_first_label: Whether `num_items_in_batch` leaves out the first label of each row, which is not predicted.
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

    It is the weighted constraint times this micro-batch's share of the step; 0 where there is none, as in evaluation.

    Args:
        outputs: What the model returned. In training, given task types and no labels, it holds the weighted constraint.
        labels: The labels of the micro-batch, which the model was not given.
        num_items_in_batch: Number of labels of the whole step; None where the loss is a mean over the micro-batch.
        device: Of the result. Default: the constraint's device.
    """
    weighted: Tensor | None = outputs.get("balance_loss") if isinstance(outputs, Mapping) else None
    if weighted is None:
        return 0.0
    device = weighted.device if device is None else device
    call = {"labels": labels, "num_items_in_batch": num_items_in_batch}
    return share_of_step(call, outputs["skips_first_label"], device) * weighted.to(device)
