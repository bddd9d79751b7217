"""Samples to calibrate with and to measure on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from loramoe.data import IGNORE_INDEX, SftCollator


@pytest.fixture
def samples() -> list[dict[str, Any]]:
    """8 samples of 3 to 10 tokens, of two task types; the answer is the last third."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for n in range(8):
        ids = torch.randint(3, 64, (3 + n,), generator=generator).tolist()
        answer = max(1, len(ids) // 3)
        labels = [IGNORE_INDEX] * (len(ids) - answer) + ids[-answer:]
        made.append({"input_ids": ids, "labels": labels, "task_types": n % 2})
    return made


@pytest.fixture
def batches(samples: list[dict[str, Any]]) -> Callable[..., list[dict[str, Tensor]]]:
    """Makes batches of a size, padded on the right."""

    def make(size: int = 5) -> list[dict[str, Tensor]]:
        return [SftCollator(0)(samples[start : start + size]) for start in range(0, len(samples), size)]

    return make
