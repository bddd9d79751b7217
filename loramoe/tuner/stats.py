"""What the constraint saw in one forward pass, for logs, reports and whoever calls `loramoe.last_balance`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loramoe.balance import BlcImportance


@dataclass(frozen=True)
class BalanceStats:
    """What the constraint saw in one forward pass, detached; figures by task type are computed when they are read.

    Attributes:
        constraint_L: The localized balancing constraint of each adapted layer, unweighted, float32.
        importance_LME: Importance of each expert for each sample, for each layer.
        kind: Whether that is the "mean" or the "sum" of the gates over the real tokens of the sample.
        tokens_M: Number of real tokens of each sample.
        task_types_M: Task type of each sample.
        expert_types: Type of each expert.
        layers: Names of the L adapted layers.
    """

    constraint_L: Tensor
    importance_LME: Tensor
    kind: BlcImportance
    tokens_M: Tensor
    task_types_M: Tensor
    expert_types: tuple[int, ...]
    layers: tuple[str, ...]

    @property
    def constraint(self) -> Tensor:
        """Sum over the layers of the constraint, unweighted, a scalar."""
        return self.constraint_L.sum()

    @property
    def task_types(self) -> tuple[int, ...]:
        """The T task types of which the batch held a real token, ascending."""
        return tuple(sorted(set(self.task_types_M[self.tokens_M > 0].tolist())))

    @property
    def tokens_T(self) -> Tensor:
        """Number of real tokens of each task type."""
        return self._is_type_TM() @ self.tokens_M

    @property
    def gate_TLE(self) -> Tensor:
        """Mean gate over the real tokens of each task type, for each layer and expert; sums to 1 over the experts."""
        weight_TM = self._is_type_TM() if self.kind == "sum" else self._is_type_TM() * self.tokens_M
        sum_TLE = torch.einsum("tm,lme->tle", weight_TM.to(self.importance_LME), self.importance_LME)
        return sum_TLE / self.tokens_T[:, None, None]

    def _is_type_TM(self) -> Tensor:
        types_T = torch.tensor(self.task_types, dtype=self.task_types_M.dtype, device=self.task_types_M.device)
        return (types_T[:, None] == self.task_types_M).to(self.tokens_M)
