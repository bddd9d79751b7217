"""Which token belongs to which sample: one matrix for padded and for padding-free batches.

    W_MN[m, n] = 1 where token n is a real token of sample m, else 0
    Q_ME       = W_MN · gates_NE / (real tokens of sample m)

N counts the tokens of the batch row by row. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loramoe.balance.constraint import BlcImportance


@dataclass
class Membership:
    """The M samples of a batch of B rows and S columns.

    Attributes:
        W_MN: 1 where token n is a real token of sample m, else 0; float32 [M, B·S].
        tokens_M: Number of real tokens of each sample, float32.
        starts: Number of samples that the position ids start; None where each row is a sample.
        shape: B and S.
    """

    W_MN: Tensor
    tokens_M: Tensor
    starts: Tensor | None
    shape: tuple[int, int]

    @property
    def real_M(self) -> Tensor:
        """Which samples have a real token."""
        return self.tokens_M > 0

    def importance(self, gates: Tensor, kind: BlcImportance = "mean") -> Tensor:
        """Return Q [M, E] of one layer from its gates [B, S, E] or [B·S, E], in their dtype and on their device."""
        Q_ME = self.W_MN.to(gates) @ gates.reshape(-1, gates.shape[-1])
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
    rows_BB = torch.eye(B, device=mask_BS.device)
    return Membership((rows_BB.unsqueeze(-1) * real_BS).view(B, B * S), real_BS.sum(-1), None, (B, S))


def positions_as_samples(position_ids_BS: Tensor, samples: int) -> Membership:
    """Return the membership of a batch without padding, whose rows may hold several samples.

    A sample starts with each row, and wherever the position ids do not continue by one. Whether that makes `samples`
    starts is for the caller to compare.
    """
    B, S = position_ids_BS.shape
    starts_BS = torch.ones_like(position_ids_BS, dtype=torch.bool)
    starts_BS[:, 1:] = position_ids_BS.diff() != 1
    sample_N = starts_BS.flatten().cumsum(0) - 1
    W_MN = (torch.arange(samples, device=sample_N.device).unsqueeze(-1) == sample_N).to(torch.float32)
    return Membership(W_MN, W_MN.sum(-1), starts_BS.sum(), (B, S))
