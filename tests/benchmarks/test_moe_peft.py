"""The side of the package moe-peft, where it is installed (see `benchmarks/moe_peft.sh`)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.sides import Mixture, trained

pytest.importorskip("moe_peft", reason="moe-peft needs an environment of its own: bash benchmarks/moe_peft.sh")


def test_the_side_is_the_equation_and_trains_its_adapter() -> None:
    from benchmarks.moe_peft import guests

    base = nn.Linear(12, 20, bias=False).requires_grad_(False)
    (side,) = guests(base, Mixture(experts=3, rank=2, dropout=0.05)).values()
    assert sum(parameter.numel() for parameter in trained(side)) == 3 * 12 + 6 * (12 + 20)
    assert side(torch.randn(5, 12)).shape == (5, 20)
