"""What the mixture is held to: each figure, its bar on each device, and where in the results it stands.

Where a figure was measured in several cells (sizes, dtypes, with and without dropout), the bar holds for every one of
them: the worst counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks import harness

Result = dict[str, Any]
Values = Callable[[Result], Iterator[float]]
OURS = "fused"


def load(name: str, device: str) -> Result | None:
    """A benchmark's newest result.

    Args:
        name: Name of the benchmark.
        device: "cpu" or "cuda".

    Returns:
        What `write_result` wrote; None if it was not measured yet.
    """
    file = harness.RESULTS / f"{name}.{device}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


@dataclass(frozen=True)
class Bar:
    """One figure and what it must reach.

    Attributes:
        figure: What is measured, in words.
        benchmark: Name of the result that holds it.
        values: Takes it out of that result, once for each cell.
        bars: The bar on each device that has one.
        at_most: Whether the figure must not exceed the bar; else it must not fall short of it.
        percent: Whether it is shown as a percentage.
    """

    figure: str
    benchmark: str
    values: Values = field(repr=False)
    bars: dict[str, float]
    at_most: bool = True
    percent: bool = False

    def measured(self, device: str) -> list[float] | None:
        """The figure of every cell, the worst first; None if it was not measured yet."""
        result = load(self.benchmark, device)
        return None if result is None else sorted(self.values(result), reverse=self.at_most) or None

    def reached(self, value: float, device: str) -> bool:
        """Whether a figure reaches the bar of a device."""
        return value <= self.bars[device] if self.at_most else value >= self.bars[device]

    def text(self, value: float) -> str:
        """A figure as the tables show it."""
        return f"{value:.1%}" if self.percent else f"{value:.3g}"

    def bar(self, device: str) -> str:
        """The bar as the tables show it, such as "≤ 0.1"."""
        if device not in self.bars:
            return "–"
        value = f"{self.bars[device]:.0%}" if self.percent else f"{self.bars[device]:g}"
        return f"{'≤' if self.at_most else '≥'} {value}"


def _layer(path: str, *, dropout: bool | None = None, only: dict[str, Any] | None = None) -> Values:
    """Of the cells of `layer`: a comparison's figure for ours, with or without dropout, or of some cells on the CPU."""

    def values(result: Result) -> Iterator[float]:
        for cell in result["cells"]:
            wanted = dropout is None or dropout == (cell["dropout"] > 0)
            if only and result["device"] == "cpu":
                wanted = wanted and all(cell[key] == value for key, value in only.items())
            if wanted:
                figure = cell[path][OURS]
                yield figure["p50"] if isinstance(figure, dict) else figure

    return values


def _saved(result: Result) -> Iterator[float]:
    for cell in result["cells"]:
        yield cell["saved_bytes"][OURS] / cell["saved_bytes"]["lora"]


def _spread(result: Result) -> Iterator[float]:
    for cell in result["counts"]:
        yield cell["spread"]


def _speed(result: Result) -> Iterator[float]:
    for setting in result["settings"]:
        yield setting["speed_over_lora"][OURS]["p50"]


def _share_of_rate(result: Result) -> Iterator[float]:
    for setting in result["settings"]:
        yield setting["share_of_matrix_rate"][OURS]


def _peak(result: Result) -> Iterator[float]:
    for setting in result["settings"]:
        yield setting["peak_bytes"][OURS] / setting["peak_bytes"]["lora"]


def _decode(result: Result) -> Iterator[float]:
    """On a GPU the compiled ones count."""
    for setting in result["settings"]:
        if result["device"] == "cpu" or setting["compiled"]:
            yield setting["time_over_base"][OURS]["p50"]


def _packing(result: Result) -> Iterator[float]:
    for setting in result["settings"]:
        yield setting["speed_over_padded"]["packed"]["p50"]


def _live(result: Result) -> Iterator[float]:
    for setting in result["settings"]:
        yield setting["share_every_10"]["p50"]


_LARGE = {"features": [2048, 5504], "dtype": "float32", "dropout": 0.0}

BARS = (
    Bar(
        "added cost, ours / naive loop, without dropout",
        "layer",
        _layer("added_over_naive", dropout=False),
        {"cpu": 0.10, "cuda": 0.06},
    ),
    Bar(
        "added cost, ours / naive loop, with dropout",
        "layer",
        _layer("added_over_naive", dropout=True),
        {"cpu": 0.15, "cuda": 0.06},
    ),
    Bar(
        "added cost, ours / PEFT LoRA of equal parameters",
        "layer",
        _layer("added_over_lora"),
        {"cpu": 1.0, "cuda": 0.6},
    ),
    Bar(
        "time, ours / frozen base (CPU: 2048→5504, float32, without dropout)",
        "layer",
        _layer("time_over_base", only=_LARGE),
        {"cpu": 1.15, "cuda": 1.12},
    ),
    Bar("saved for backward, ours / PEFT LoRA of equal parameters", "layer", _saved, {"cpu": 1.0, "cuda": 0.7}),
    Bar(
        "E from 2 to 32 at equal E·R: spread of the times", "layer", _spread, {"cpu": 0.05, "cuda": 0.05}, percent=True
    ),
    Bar("whole step, tokens/s, ours / PEFT LoRA", "step", _speed, {"cpu": 1.0, "cuda": 1.1}, at_most=False),
    Bar(
        "whole step, share of the bf16 matrix rate",
        "step",
        _share_of_rate,
        {"cuda": 0.5},
        at_most=False,
        percent=True,
    ),
    Bar("whole step, peak memory, ours / PEFT LoRA", "step", _peak, {"cpu": 1.0, "cuda": 1.0}),
    Bar("packed / padded, real tokens/s", "packing", _packing, {"cpu": 1.8, "cuda": 2.0}, at_most=False),
    Bar("decode, ms per token, ours / base, batch 1", "decode", _decode, {"cpu": 1.25, "cuda": 1.3}),
    Bar(
        "seeing the experts while they train, logged at every 10th step, share of a step",
        "live",
        _live,
        {"cpu": 0.01, "cuda": 0.01},
        percent=True,
    ),
)
