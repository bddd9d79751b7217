"""The localized balancing constraint: pure functions of tensors.

In the symbols of arXiv 2312.09979, section "Localized Balancing Constraint":

    Q_ME = mean over the real tokens of sample m of g_e      ("mean"; with "sum" their sum, as in the original code)
    I_ME = 1 + blc_alpha where type(expert e) == task_type(sample m), else 1 − blc_alpha
    Z    = Q / I  ("match")   or   Q · I  ("paper")
    blc  = var(Z) / (mean(Z)² + 1e-10)                       unbiased, over all M·E entries of one layer

Minimising blc makes Z even. Under "match" the experts of a sample's own type end with more gate weight,
Q_match / Q_other = (1 + a) / (1 − a); under "paper", the direction of the original code, with less. The paper prints
σ²/μ; its author corrected that to σ²/μ², which the original code computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

BlcTarget = Literal["match", "paper"]
BLC_TARGETS: tuple[BlcTarget, ...] = get_args(BlcTarget)
BlcImportance = Literal["mean", "sum"]
BLC_IMPORTANCES: tuple[BlcImportance, ...] = get_args(BlcImportance)
EPSILON = 1e-10  # of the original code: keeps an all-zero Z finite


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
