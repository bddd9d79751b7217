"""How numbers stand in tables: accuracies in per cent, intervals in brackets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import stdev

from experiments.knowledge_forgetting.analysis.matched import Reading
from experiments.knowledge_forgetting.analysis.style import words
from experiments.knowledge_forgetting.analysis.summary import Measured, PointSummary
from loramoe.evaluation.statistics import Estimate

_SURE = 0.995  # from this share of the draws on, it is not told


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    Args:
        head: Its columns; the first holds words, the others numbers.
        rows: Its cells.

    Returns:
        Its lines.
    """
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.1f}"


def spread(measured: Measured) -> str:
    """A mean and the standard deviation over seeds, if there are several."""
    values = list(measured.by_seed.values())
    return f"{percent(measured.value)} ± {percent(stdev(values))}" if len(values) > 1 else percent(measured.value)


def interval(estimate: Estimate | Measured) -> str:
    """A value and its interval."""
    return f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]"


def three_intervals(point: PointSummary) -> list[str]:
    """Knowledge, what is kept of it, and downstream accuracy."""
    return [interval(measured) for measured in (point.knowledge, point.kept, point.downstream)]


def three_spreads(point: PointSummary) -> list[str]:
    """The same with the standard deviation over seeds."""
    return [spread(measured) for measured in (point.knowledge, point.kept, point.downstream)]


def point_cells(point: PointSummary) -> list[str]:
    """Arm, learning rate, parameters and number of seeds."""
    seeds = str(len(point.downstream.by_seed)) if point.arm != "base" else ""
    return [words(point.arm), f"{point.learning_rate:g}", f"{point.trainable_parameters:,}", seeds]


def reading(of: Reading | None) -> str:
    """What a line says at a level."""
    if of is None:
        return "not reached"
    return f"{'≥ ' * of.is_bound}{interval(of.value)}{_reached(of)}"


def difference(of: Reading | None) -> str:
    """What a line says more than another."""
    if of is None:
        return "—"
    return signed(of.value) + _reached(of)


def signed(of: Estimate) -> str:
    """By how much something is more, with its interval, in points."""
    return f"{100 * of.value:+.1f} [{100 * of.low:+.1f}, {100 * of.high:+.1f}]".replace("-", "−")


def _reached(of: Reading) -> str:
    return f" in {100 * of.reached:.0f} %" if of.reached < _SURE else ""
