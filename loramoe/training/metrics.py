"""Losses by sample and by task type, for evaluations whose result does not depend on how samples were batched."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from loramoe.data import IGNORE_INDEX
from loramoe.tuner.hooks import BalanceStats

CHUNK = 512  # positions of which float32 log-probabilities are made at once
LossSums = dict[int | None, tuple[float, int]]


@torch.no_grad()
def sample_losses(logits_BSV: Tensor, labels_BS: Tensor, lengths: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the learnt tokens, summed by sample."""
    row_K, position_K = (labels_BS[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    samples, sample_K = len(labels_BS), row_K
    if lengths is not None:
        samples = len(lengths)
        ends_M = torch.tensor(lengths, device=labels_BS.device).cumsum(0)
        sample_K = torch.searchsorted(ends_M, position_K + 1, right=True)
    loss_M, tokens_M = torch.zeros(2, samples, dtype=torch.float64)  # on the CPU: MPS has no float64
    for rows, positions, owners in zip(*(torch.split(t, CHUNK) for t in (row_K, position_K, sample_K)), strict=True):
        targets = labels_BS[rows, positions + 1]
        loss = torch.nn.functional.cross_entropy(logits_BSV[rows, positions].float(), targets, reduction="none")
        loss_M.index_add_(0, owners.cpu(), loss.cpu().double())
        tokens_M += torch.bincount(owners.cpu(), minlength=samples)
    return loss_M, tokens_M


def loss_metrics(sums: Sequence[LossSums], type_names: Mapping[int, str]) -> dict[str, float]:
    """Loss and perplexity over all tokens, and of each task type by its name."""
    total: LossSums = {}
    for task_type, (loss, tokens) in (item for part in sums for item in part.items()):
        before = total.get(task_type, (0.0, 0))
        total[task_type] = before[0] + loss, before[1] + tokens
    named = {"": (sum(loss for loss, _ in total.values()), sum(tokens for _, tokens in total.values()))}
    if len(total) > 1:
        named |= {f"/{type_names.get(t, f'type{t}')}": total[t] for t in sorted(t for t in total if t is not None)}
    metrics = {}
    for name, (loss, tokens) in named.items():
        if tokens:
            metrics[f"loss{name}"] = loss / tokens
            metrics[f"perplexity{name}"] = perplexity(loss / tokens)
    return metrics


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def first_samples(balance: BalanceStats, count: int) -> BalanceStats:
    """What the constraint saw of the first samples of a batch."""
    return dataclasses.replace(
        balance,
        importance_LME=balance.importance_LME[:, :count],
        entropy_LM=None if balance.entropy_LM is None else balance.entropy_LM[:, :count],
        tokens_M=balance.tokens_M[:count],
        task_types_M=balance.task_types_M[:count],
    )
