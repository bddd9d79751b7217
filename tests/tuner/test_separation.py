"""Forty training steps: with the constraint the experts separate by task type, without it they do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import loramoe
from tests.constrained import S, adapted


def mixed_batch(step: int) -> dict[str, Tensor]:
    """Short samples of type 1 and long ones of type 0, of words of their own."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.stack([torch.randint(1 + 20 * (m % 2), 20 + 20 * (m % 2), (S,), generator=generator) for m in range(8)])
    mask = (torch.arange(S) < torch.tensor([8, 3] * 4).unsqueeze(-1)).long()
    types = torch.tensor([0, 1] * 4)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100), "task_types": types}


def train_40_steps(**config: Any) -> tuple[list[float], Tensor]:
    """The constraint at each step, and at the end the share of each type that its own group of experts has."""
    model = adapted(r=2, blc_alpha=0.5, init_lora_weights=True, **config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    constraints = []
    for step in range(40):
        model(**mixed_batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        constraints.append(loramoe.last_balance(model).constraint.item())
    gate_TE = loramoe.last_balance(model).gate_TLE.mean(1)
    return constraints, torch.stack([gate_TE[0, 2:].sum(), gate_TE[1, :2].sum()])


def test_training_with_the_constraint_separates_the_types() -> None:
    """The closed form is (1 + a) / 2 = 0.75 for either type, although one has samples of 8 tokens and one of 3."""
    constraints, own_T = train_40_steps(blc_weight=1.0)
    assert sum(constraints[-5:]) < 0.3 * sum(constraints[:5])
    assert ((own_T > 0.68) & (own_T < 0.78)).all()


def test_training_without_the_constraint_does_not() -> None:
    constraints, own_T = train_40_steps(blc_weight=0.0)
    assert sum(constraints[-5:]) > sum(constraints[:5])
    assert (own_T < 0.6).all()
