"""Mean gate of each expert by task type and linear, gathered batch by batch in one pass.

Batches are weighted by their real tokens, so that the result does not depend on how rows were batched. Sums stay on the
device until they are asked for: adding a batch never waits for the accelerator.

Shape letters: T task types, L adapted linears, N layers, E experts, G groups (experts of one type).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loramoe.balance.constraint import squared_cv
from loramoe.report.layers import layers_of

if TYPE_CHECKING:
    from loramoe import BalanceStats


@dataclass(frozen=True)
class Shares:
    """Who served whom, over a whole set of rows.

    Attributes:
        gate_TLE: Mean gate over the real tokens of each task type, [T, L, E] float64 on the CPU; sums to 1 over E.
        tokens_T: Real tokens of each task type, [T] float64.
        constraint: Mean over the batches of the constraint summed over linears, unweighted.
        task_types: The T task types, sorted.
        linears: Names of the L adapted linears.
        expert_types: Type of each of the E experts.
        constraint_L: The share of each linear in `constraint`, [L] float64 on the CPU.
    """

    gate_TLE: Tensor
    tokens_T: Tensor
    constraint: float
    task_types: tuple[int, ...]
    linears: tuple[str, ...]
    expert_types: tuple[int, ...]
    constraint_L: Tensor

    @property
    def groups(self) -> tuple[int, ...]:
        """The G types that experts have, sorted."""
        return tuple(sorted(set(self.expert_types)))

    def group_share(self, gate_E: Tensor | None = None) -> Tensor:
        """Gate weight of each group of experts.

        Args:
            gate_E: Mean gates with the experts in the last dimension, [..., E]. Default: `gate_TLE`.

        Returns:
            Share of each group, [..., G]; sums to 1 over G.
        """
        gate_E = self.gate_TLE if gate_E is None else gate_E
        types_E = torch.tensor(self.expert_types)
        return torch.stack([gate_E[..., types_E == group].sum(dim=-1) for group in self.groups], dim=-1)

    def by_layer(self) -> tuple[list[str], Tensor]:
        """Mean over the linears of each layer.

        Returns:
            The layers' labels (their index in the model, or the linear's name where it has none), and gates [T, N, E].
        """
        layers = layers_of(self.linears)
        gates = [self.gate_TLE[:, layer.linears].mean(dim=1) for layer in layers]
        return [layer.label for layer in layers], torch.stack(gates, dim=1)

    def cov(self) -> Tensor:
        """Coefficient of variation of the experts' importance in each linear, over all rows whatever their type.

        The root of what the constraint is with one sample and I = 1: 0 where all experts got as much, √E where one got
        everything. A mixture of a single expert has 0.

        Returns:
            Standard deviation (of the unbiased variance) over mean, [L] float64.
        """
        importance_LE = torch.einsum("t,tle->le", self.tokens_T, self.gate_TLE)
        if importance_LE.shape[-1] == 1:
            return importance_LE.new_zeros(len(importance_LE))
        return squared_cv(importance_LE.unsqueeze(1)).sqrt()

    def flat(self) -> dict[str, float]:
        """The constraint and the mean group shares over all linears, named for a log.

        Returns:
            `blc`, and for each task type and group `share/type1/group0`.
        """
        share_TG = self.group_share().mean(dim=1)
        shares = {
            f"share/type{task_type}/group{group}": share_TG[t, g].item()
            for t, task_type in enumerate(self.task_types)
            for g, group in enumerate(self.groups)
        }
        return {"blc": self.constraint, **shares}


class ShareMeter:
    """Gathers the `BalanceStats` of many forwards into `Shares`.

    The expert count and the linears must be the same in all of them; the task types need not be.
    """

    def __init__(self) -> None:
        self._gates: dict[int, Tensor] = {}  # task type -> Σ tokens · gate, [L, E]
        self._tokens: dict[int, Tensor] = {}
        self._constraint_L: Tensor | float = 0.0
        self._batches = 0
        self._names: tuple[tuple[str, ...], tuple[int, ...]] | None = None

    def add(self, balance: BalanceStats) -> None:
        """Adds one forward.

        Args:
            balance: What `loramoe.last_balance(model)` returned after it.
        """
        tokens_T, gate_TLE = balance.tokens_T.double(), balance.gate_TLE.double()
        for t, task_type in enumerate(balance.task_types):
            tokens = tokens_T[t]
            self._gates[task_type] = self._gates.get(task_type, 0.0) + tokens * gate_TLE[t]
            self._tokens[task_type] = self._tokens.get(task_type, 0.0) + tokens
        self._constraint_L = self._constraint_L + balance.constraint_L.double()
        self._batches += 1
        self._names = (tuple(balance.layers), tuple(balance.expert_types))

    def on_cpu(self) -> ShareMeter:
        """A copy on the CPU, which can be sent to other processes."""
        return ShareMeter.sum([self])

    @staticmethod
    def sum(meters: Iterable[ShareMeter]) -> ShareMeter:
        """Puts together what several processes gathered.

        Args:
            meters: Their meters.

        Returns:
            A new meter of them all, on the CPU.
        """
        total = ShareMeter()
        for meter in meters:
            for task_type, gates_LE in meter._gates.items():
                total._gates[task_type] = total._gates.get(task_type, 0.0) + gates_LE.cpu()
                total._tokens[task_type] = total._tokens.get(task_type, 0.0) + meter._tokens[task_type].cpu()
            total._constraint_L = total._constraint_L + torch.as_tensor(meter._constraint_L).cpu()
            total._batches += meter._batches
            total._names = total._names or meter._names
        return total

    def result(self) -> Shares | None:
        """The shares of everything added so far, or None where no batch had a real token."""
        if self._names is None or not self._gates:
            return None
        linears, expert_types = self._names
        task_types = tuple(sorted(self._gates))
        gate_TLE = torch.stack([self._gates[t] / self._tokens[t] for t in task_types]).cpu()
        tokens_T = torch.stack([self._tokens[t] for t in task_types]).cpu()
        constraint_L = torch.as_tensor(self._constraint_L).cpu() / self._batches
        return Shares(gate_TLE, tokens_T, float(constraint_L.sum()), task_types, linears, expert_types, constraint_L)


def write_shares(shares: Shares, file: Path, **facts: Any) -> None:
    """Writes shares as JSON.

    Args:
        shares: What to write.
        file: Where to.
        facts: More to say beside them, such as `blc_target`.
    """
    values = {f.name: getattr(shares, f.name) for f in dataclasses.fields(shares)}
    plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}
    file.write_text(json.dumps({**facts, **plain}, indent=1) + "\n", encoding="utf-8")
