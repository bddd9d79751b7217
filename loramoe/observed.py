"""What the constraint saw in one forward, for reports, logs and whoever asks `loramoe.last_balance`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loramoe.config import LoraMoeConfig


@dataclass(frozen=True)
class Balance:
    """What the constraint saw in one forward, detached from the graph.

    Attributes:
        constraint: Sum over the linears of the localized balancing constraint, unweighted, a float32 scalar.
        constraint_L: The constraint of each adapted linear.
        gate_TLE: Mean gate over the real tokens of each task type, for each linear and expert; sums to 1 over the
            experts.
        tokens_T: Number of real tokens of each task type.
        task_types: The T task types that the batch held a real token of, ascending.
        expert_types: Type of each expert.
        linears: Names of the L adapted linears.
    """

    constraint: Tensor
    constraint_L: Tensor
    gate_TLE: Tensor
    tokens_T: Tensor
    task_types: tuple[int, ...]
    expert_types: tuple[int, ...]
    linears: tuple[str, ...]


@torch.no_grad()
def summary(
    config: LoraMoeConfig,
    linears: tuple[str, ...],
    constraint_L: Tensor,
    Q_LME: Tensor,
    task_types: Tensor,
    mask_MS: Tensor,
    types_present: tuple[int, ...],
) -> Balance:
    """What the constraint saw in one forward, from what it was computed from.

    Args:
        config: Configuration of the adapter.
        linears: Names of the L adapted linears.
        constraint_L: The constraint of each, [L] float32.
        Q_LME: Importance, [L, M, E] float32.
        task_types: Task type of each sample, [M] int64 on the host.
        mask_MS: Which tokens of each sample are real, [M, S] bool.
        types_present: The T task types that have a real token, ascending; of any other there is no mean gate.

    Returns:
        The summary, on the device of the gates.
    """
    is_type_TM = (torch.tensor(types_present, dtype=task_types.dtype)[:, None] == task_types).to(Q_LME)
    tokens_T = is_type_TM @ mask_MS.sum(-1).to(Q_LME.dtype)
    gate_TLE = torch.einsum("tm,lme->tle", is_type_TM, Q_LME) / tokens_T[:, None, None]
    return Balance(
        constraint=constraint_L.sum().detach(),
        constraint_L=constraint_L.detach(),
        gate_TLE=gate_TLE,
        tokens_T=tokens_T,
        task_types=types_present,
        expert_types=config.types_of_experts,
        linears=linears,
    )
