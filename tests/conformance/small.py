"""Models of a few parameters that are no language models: a tuner must not ask for more than linears."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

from loramoe import LoraMoeConfig

# What peft promises by now: its own LoRA does not keep it in the oldest version that we support.
later_peft = pytest.mark.skipif(Version(peft.__version__) < Version("0.21"), reason="peft 0.17 breaks it, for LoRA too")


class Mlp(nn.Module):
    """Two linears, of which each row [10] of a batch becomes [2]."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.Linear(10, 20)
        self.lin1 = nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin1(self.lin0(x).relu())
        return out


class Deep(nn.Module):
    """Three MLPs, one after the other, in a list named `layers`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"lin0": nn.Linear(6, 6), "lin1": nn.Linear(6, 6)}) for _ in "012"])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer["lin1"](layer["lin0"](x).relu())
        return x


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The same weights at each call, in evaluation mode."""
    torch.manual_seed(0)
    return make().eval()


def rows(features: int = 10) -> Tensor:
    """Six inputs, [6, features]."""
    return torch.randn(6, features, generator=torch.Generator().manual_seed(3))


def config(*target_modules: str, **options: Any) -> LoraMoeConfig:
    """Three experts of rank 2 that start with random weights, on the linears that are named."""
    settings = {"lora_nums": 3, "r": 2, "lora_dropout": 0.0, "init_lora_weights": False, **options}
    return LoraMoeConfig(target_modules=list(target_modules) or ["lin0"], **settings)
