"""From figures of single questions to figures of a task, and how sure they are.

Every metric is a ratio of two sums over questions: a mean divides by their number, a perplexity by their tokens. So one
bootstrap serves all: questions are drawn again with replacement, the same ones for every model, and the spread of the
ratios, and of their differences, is the interval. What models share, hard and easy questions, cancels in a difference.

Shape letters: M models, the first of them the base; Q questions; B draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from loramoe.evaluation.scoring import Scores

DRAWS: Final = 2000
SEED: Final = 0
LEVEL: Final = 0.95

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A figure of a task.

    Attributes:
        key: Of the figure of a question.
        name: What the table calls it.
        weight: Key of what its sum is divided by; None divides by the number of questions.
        perplexity: Whether exp(−ratio) is told in place of the ratio.
    """

    key: str
    name: str
    weight: str | None = None
    perplexity: bool = False

    def told(self, ratio: Array) -> Array:
        """The figure that is told of a ratio of sums."""
        return np.exp(-ratio) if self.perplexity else ratio


METRICS: Final = (
    Metric("accuracy", "accuracy"),
    Metric("accuracy_per_character", "accuracy, per character"),
    Metric("exact_match", "exact match"),
    Metric("f1", "F1"),
    Metric("recall", "recall"),
    Metric("log_likelihood", "log-likelihood"),
    Metric("log_likelihood", "perplexity", weight="tokens", perplexity=True),
)


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that it lies in, at 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """A line of the table: one metric of one task, or of its questions of one type.

    Attributes:
        task: Name of the task.
        task_type: The questions' type; None for all questions of the task.
        metric: Name of the metric.
        questions: How many questions count.
        too_long: How many of the task are left out, as they are too long.
        values: For each model its figure.
        differences: For each model but the first its figure less that of the first.
    """

    task: str
    task_type: int | None
    metric: str
    questions: int
    too_long: int
    values: dict[str, Estimate]
    differences: dict[str, Estimate]


def summarise(task: str, too_long: int, scores: Mapping[str, Scores]) -> list[Line]:
    """Sums up a task.

    Args:
        task: Its name.
        too_long: How many of its questions are left out.
        scores: For each model, the base first, what became of each question, in the same order.

    Returns:
        For all questions, and for those of each type where there are several, a line for each metric that there is.
    """
    rows = list(zip(*scores.values(), strict=True))
    types = sorted({row[0]["task_type"] for row in rows if row[0]["task_type"] is not None})
    groups = [None, *types] if len({row[0]["task_type"] for row in rows}) > 1 else [None]
    lines = []
    for group in groups:
        of_group = [row for row in rows if group is None or row[0]["task_type"] == group]
        for metric in METRICS:
            counting = [row for row in of_group if metric.key in row[0]]
            if counting:
                estimates = _estimates(metric, counting, list(scores))
                lines.append(Line(task, group, metric.name, len(counting), too_long, *estimates))
    return lines


def _estimates(
    metric: Metric, rows: list[tuple[dict[str, Any], ...]], models: list[str]
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    figures_QM = np.array([[one[metric.key] for one in row] for row in rows], dtype=np.float64)
    weights_Q = np.array([row[0][metric.weight] if metric.weight else 1 for row in rows], dtype=np.float64)
    told_M = metric.told(figures_QM.sum(axis=0) / weights_Q.sum())
    told_BM = metric.told(resampled_ratios(figures_QM, weights_Q))
    values = _with_intervals(told_M, told_BM)
    differences = _with_intervals(told_M[1:] - told_M[0], told_BM[:, 1:] - told_BM[:, :1])
    return dict(zip(models, values, strict=True)), dict(zip(models[1:], differences, strict=True))


def resampled_ratios(figures_QM: Array, weights_Q: Array) -> Array:
    """Ratios of sums, of questions drawn with replacement.

    Args:
        figures_QM: What is summed.
        weights_Q: What the sum is divided by the sum of.

    Returns:
        [B, M]; the same draws every time, and whatever the order of the questions.
    """
    table = np.column_stack([figures_QM, weights_Q])
    table = table[np.lexsort(table.T)]
    generator = np.random.default_rng(SEED)
    sums = np.stack([table[generator.integers(len(table), size=len(table))].sum(axis=0) for _ in range(DRAWS)])
    ratios: Array = sums[:, :-1] / sums[:, -1:]
    return ratios


def _with_intervals(told_M: Array, told_BM: Array) -> list[Estimate]:
    ends = np.quantile(told_BM, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [Estimate(float(v), float(low), float(high)) for v, low, high in zip(told_M, *ends, strict=True)]
