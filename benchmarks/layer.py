"""One adapted linear layer: time of forward and backward pass, bytes saved between them, E from 2 to 32 at equal E·R.

The backward pass computes the gradients of x and of the adapter. Without dropout, each side is first compared with the
equation in float64, at the size that is then timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import chain, product
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import paired, saved_bytes
from benchmarks.sides import OURS, Mixture, check, linear_side, trained

SIDES = ("base", "lora", "naive", *OURS)
EXPERTS = (2, 4, 8, 16, 32)
TOTAL_RANK = 64
CHECKED_TOKENS = 1024  # float64 is slow


def has_fast_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 less than twice as slowly as float32."""
    squares = {name: torch.ones(512, 512, dtype=getattr(torch, name)) for name in ("float32", "bfloat16")}
    seconds = paired({name: lambda x=x: x @ x for name, x in squares.items()}, pairs=5)
    return median(seconds["bfloat16"]) < 2 * median(seconds["float32"])


def cells(device: str, quick: bool) -> list[dict[str, Any]]:
    """Return the sizes to measure; on a GPU gate_proj of Llama-2-7B with 4 rows of 4,096 tokens."""
    sizes = [(1024, 2816, 512), (1024, 2816, 2048), (2048, 5504, 512), (2048, 5504, 2048)]
    if quick:
        layers = [(64, 96, 32, "float32")]
    elif device == "cuda":
        layers = [(4096, 11008, 4 * 4096, "bfloat16")]
    else:  # a CPU without instructions for bfloat16 emulates it, some 20 times slower
        emulated = [] if has_fast_bfloat16() else [(256, 704, 256), (512, 1408, 256)]
        layers = [(*size, "float32") for size in sizes] + [(*size, "bfloat16") for size in emulated or sizes]
    return [
        {"features": (D, F), "tokens": tokens, "dtype": dtype, "dropout": dropout}
        for (D, F, tokens, dtype), dropout in product(layers, (0.0, 0.05))
    ]


def operands(cell: dict[str, Any], device: torch.device) -> tuple[nn.Linear, Tensor, Tensor]:
    """Return the frozen layer D → F, an input x [tokens, D] and a gradient of the output [tokens, F]."""
    (D, F), tokens, like = cell["features"], cell["tokens"], {"device": device, "dtype": getattr(torch, cell["dtype"])}
    base = nn.Linear(D, F, bias=False, **like).requires_grad_(False)
    return base, torch.randn(tokens, D, **like, requires_grad=True), torch.randn(tokens, F, **like)


def forward_backward(side: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], None]:
    """Return a function that runs one forward and backward pass."""
    leaves = [x, *trained(side)]

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        side(x).backward(dy)

    return run


def measure(cell: dict[str, Any], device: torch.device, pairs: int) -> dict[str, Any]:
    """Check and compare all sides in one cell."""
    base, x, dy = operands(cell, device)
    mixture = Mixture(dropout=cell["dropout"])
    errors = {} if cell["dropout"] else check(base, x[:CHECKED_TOKENS], dy[:CHECKED_TOKENS], mixture)
    sides = {name: linear_side(name, base, mixture) for name in SIDES}
    saved = {
        name: saved_bytes(lambda side=side: side(x), chain(side.parameters(), side.buffers()))
        for name, side in sides.items()
    }
    runs = {name: forward_backward(side, x, dy) for name, side in sides.items()}
    return cell | {
        "relative_error": errors,
        "saved_bytes": saved,
        "seconds": paired(runs, pairs, name=str(cell)),
    }


def measure_counts(cell: dict[str, Any], device: torch.device, pairs: int) -> dict[str, Any]:
    """Compare expert counts at equal E·R: with stacked experts the products stay the same."""
    base, x, dy = operands(cell, device)
    mixtures = {str(E): Mixture(experts=E, rank=TOTAL_RANK // E) for E in EXPERTS}
    runs = {E: forward_backward(linear_side("fused", base, mixture), x, dy) for E, mixture in mixtures.items()}
    return cell | {"total_rank": TOTAL_RANK, "seconds": paired(runs, pairs, name=f"E at E·R = {TOTAL_RANK}")}


def run(device: torch.device, quick: bool) -> dict[str, Any]:
    """Measure all cells."""
    pairs, todo = 2 if quick else 9, cells(device.type, quick)
    counted = {cell["dtype"]: cell for cell in todo if cell["dropout"] == 0}  # the largest of each dtype
    return {
        "mixture": asdict(Mixture()),
        "cells": [measure(cell, device, pairs) for cell in todo],
        "counts": [measure_counts(cell, device, pairs) for cell in counted.values()],
    }
