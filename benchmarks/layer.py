"""One adapted linear: time of forward and backward, and what is kept between the two.

Every side is first held to the equation (outputs and all gradients, float64), at the size that is then timed. Backward
goes to x and to the adapter's parameters; the base is frozen, so that it computes no gradient of its weight.

    python -m benchmarks.layer [--device cpu|cuda] [--quick]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain, product
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.check import check
from benchmarks.harness import (
    added_ratio,
    paired,
    quantiles,
    ratios,
    run_alone,
    start,
    write_result,
)
from benchmarks.memory import saved_bytes
from benchmarks.sides import OURS, Mixture, linear_side, trained

OTHERS = ("base", "lora", "naive")
EXPERTS = (2, 4, 8, 16, 32)
TOTAL_RANK = 64


@dataclass(frozen=True)
class Cell:
    """One size and setting that is measured.

    Attributes:
        features: In-features D and out-features F of the linear.
        tokens: Number of tokens in the batch.
        dtype: Of everything: x, the base and the adapter.
        dropout: Dropout probability on the experts' input.
    """

    features: tuple[int, int]
    tokens: int
    dtype: str
    dropout: float

    def __str__(self) -> str:
        D, F = self.features
        return f"{D}→{F}, {self.tokens} tokens, {self.dtype}, dropout {self.dropout}"


@dataclass(frozen=True)
class Plan:
    """What one run measures.

    Attributes:
        cells: The comparisons of all sides.
        counts: The comparisons of expert counts at equal E·R (their dropout is 0).
        pairs: Rounds of each that count.
        warmup: Rounds of each before them: on the CPU the check has warmed up already, on a GPU kernels are tuned.
    """

    cells: tuple[Cell, ...]
    counts: tuple[Cell, ...]
    pairs: int = 9
    warmup: int = 1


def has_fast_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 less than twice as slowly as float32."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(512, 512, dtype=dtype)
        x @ x  # warm-up
        began = perf_counter()
        for _ in range(5):
            x @ x
        seconds[dtype] = perf_counter() - began
    fast = seconds[torch.bfloat16] < 2 * seconds[torch.float32]
    if not fast:
        print("bfloat16 is left out: this CPU multiplies it at least twice as slowly as float32.", flush=True)
    return fast


def plan(device: str, quick: bool) -> Plan:
    """What to measure.

    Args:
        device: "cpu", or "cuda" for the shape of Llama-2-7B's gate_proj with 4 rows of 4096 tokens.
        quick: Tiny sizes instead.

    Returns:
        The plan.
    """
    dtypes, dropouts = ("float32", "bfloat16") if quick or has_fast_bfloat16() else ("float32",), (0.0, 0.05)
    if quick:
        cells = tuple(Cell((64, 96), 32, *rest) for rest in product(dtypes, dropouts))
        return Plan(cells, cells[:1], pairs=2)
    if device == "cuda":
        cells = tuple(Cell((4096, 11008), 4 * 4096, "bfloat16", dropout) for dropout in dropouts)
        return Plan(cells, cells[:1], pairs=15, warmup=3)
    sizes = product(((1024, 2816), (2048, 5504)), (512, 2048), dtypes, dropouts)
    counts = tuple(Cell((1024, 2816), 2048, dtype, 0.0) for dtype in dtypes)
    return Plan(tuple(Cell(*size) for size in sizes), counts)


def operands(cell: Cell, device: torch.device) -> tuple[nn.Linear, Tensor, Tensor]:
    """A frozen linear, an input that requires a gradient, and a gradient of the output.

    Args:
        cell: The size.
        device: Where.

    Returns:
        The linear D → F, x [tokens, D] and dy [tokens, F].
    """
    D, F = cell.features
    like = {"device": device, "dtype": getattr(torch, cell.dtype)}
    base = nn.Linear(D, F, bias=False, **like).requires_grad_(False)
    return base, torch.randn(cell.tokens, D, **like, requires_grad=True), torch.randn(cell.tokens, F, **like)


def forward_backward(side: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], None]:
    """What is timed: forward, and backward to x and to the trained parameters.

    Args:
        side: The adapted linear.
        x: Its input [tokens, D], which requires a gradient.
        dy: The gradient of its output, [tokens, F].

    Returns:
        A function that does it once.
    """
    leaves = [x, *trained(side)]

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        side(x).backward(dy)

    return run


def measure(
    cell: Cell,
    device: torch.device,
    pairs: int = 9,
    warmup: int = 1,
    guests: Callable[[nn.Linear, Mixture], dict[str, nn.Module]] = lambda base, mixture: {},
) -> dict[str, Any]:
    """Check all sides, and compare their times and what they keep for backward.

    Args:
        cell: Size and setting.
        device: Where.
        pairs: Rounds that count.
        warmup: Rounds before them.
        guests: Makes sides of other packages, by name, from the frozen linear; they check themselves.

    Returns:
        The cell with its errors (none with dropout, which has no one truth), seconds of every round, ratios, added
        costs and saved bytes.
    """
    base, x, dy = operands(cell, device)
    mixture = Mixture(dropout=cell.dropout)
    errors = check(base, x, dy, mixture) if cell.dropout == 0 else {}
    sides = {name: linear_side(name, base, mixture) for name in (*OTHERS, *OURS)}
    sides |= guests(base, mixture)
    runs = {name: forward_backward(side, x, dy) for name, side in sides.items()}
    seconds = paired(runs, pairs, warmup, name=str(cell))
    return {
        **asdict(cell),
        "relative_error": errors,
        "saved_bytes": {name: _saved(side, x) for name, side in sides.items()},
        "seconds": seconds,
        **compare(seconds),
    }


def _saved(side: nn.Module, x: Tensor) -> int:
    return saved_bytes(lambda: side(x), chain(side.parameters(), side.buffers()))


def compare(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """What the bars are about, from the seconds of all sides.

    Args:
        seconds: Seconds of each side, `base`, `lora` and `naive` among them, in the same rounds.

    Returns:
        Time over the base's (quantiles over rounds), and added cost as a share of the naive loop's and of LoRA's.
    """
    base = seconds["base"]
    others = [name for name in seconds if name != "base"]

    def shares(of: str) -> dict[str, float]:
        return {name: added_ratio(seconds[name], seconds[of], base) for name in others if name != of}

    over_base = {name: quantiles(ratios(seconds[name], base)) for name in others}
    return {"time_over_base": over_base, "added_over_naive": shares("naive"), "added_over_lora": shares("lora")}


def measure_counts(cell: Cell, device: torch.device, pairs: int, warmup: int) -> dict[str, Any]:
    """Compare expert counts at equal E·R: with the experts stacked, the products stay the same.

    Args:
        cell: Size and dtype.
        device: Where.
        pairs: Rounds that count.
        warmup: Rounds before them.

    Returns:
        The cell with seconds of each count, their medians over that of the fewest experts, and `spread`, the share by
        which the slowest is slower than the fastest.
    """
    base, x, dy = operands(cell, device)
    sides = {str(E): linear_side("fused", base, Mixture(experts=E, rank=TOTAL_RANK // E)) for E in EXPERTS}
    runs = {name: forward_backward(side, x, dy) for name, side in sides.items()}
    seconds = paired(runs, pairs, warmup, name=f"E at E·R = {TOTAL_RANK}, {cell.dtype}")
    fewest = seconds[str(EXPERTS[0])]
    over_fewest = {name: median(ratios(taken, fewest)) for name, taken in seconds.items()}
    spread = max(over_fewest.values()) / min(over_fewest.values()) - 1
    return {
        **asdict(cell),
        "total_rank": TOTAL_RANK,
        "seconds": seconds,
        "over_fewest": over_fewest,
        "spread": spread,
    }


def main(device: str | None = None, quick: bool = False) -> None:
    """Measure, print a line for each cell, and write `results/layer.<device>.json`.

    Args:
        device: "cpu" or "cuda"; None takes what is there.
        quick: Tiny sizes, to see that the code runs.
    """
    where = start(device)
    todo = plan(where.type, quick)
    cells, counts = [], []
    for cell in todo.cells:
        cells.append(measure(cell, where, todo.pairs, todo.warmup))
        print(f"{cell}: {_line(cells[-1])}")
    for cell in todo.counts:
        counts.append(measure_counts(cell, where, todo.pairs, todo.warmup))
        print(f"E = {EXPERTS} at equal E·R, {cell.dtype}: {counts[-1]['spread']:.1%} between fastest and slowest")
    body = {"quick": quick, "pairs": todo.pairs, "mixture": asdict(Mixture()), "cells": cells, "counts": counts}
    print(write_result("layer", where.type, body))


def _line(measured: dict[str, Any]) -> str:
    saved = measured["saved_bytes"]
    return ", ".join(
        f"{name} {measured['time_over_base'][name]['p50']:.2f} of base, added {measured['added_over_naive'][name]:.2f} "
        f"of naive, {measured['added_over_lora'][name]:.2f} of LoRA, saves {saved[name] / saved['lora']:.3f} of LoRA"
        for name in OURS
    )


if __name__ == "__main__":
    run_alone(main)
