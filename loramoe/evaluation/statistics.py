"""Figures of base model and adapters from lm-eval's logged samples, with intervals, and adapters against the base.

All models answer the same samples. So a difference is resampled pair by pair: easy and hard samples cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LEVEL: Final = 0.95
RESAMPLES: Final = 2000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure, and its interval of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One metric of one task, or of its samples of one type (None: of all): figures, and differences to the base."""

    task: str
    task_type: int | None
    metric: str
    samples: int
    values: dict[str, Estimate]
    differences: dict[str, Estimate]


Samples = Sequence[Mapping[str, Any]]
"""Logged samples of lm-eval: of one task, by one model."""


def compare(logged: Mapping[str, Mapping[str, Samples]]) -> list[Line]:
    """Compares models on the samples that lm-eval has logged.

    A figure is a ratio of sums: a mean, or a perplexity of log-likelihoods and their tokens. Metrics of a whole corpus,
    such as BLEU, have no figure of a sample, and are left out.

    Args:
        logged: For each model, the base model first, its samples by task.

    Returns:
        For all samples of a task, and for those of each type where there are several, a line for each metric.
    """
    lines: list[Line | None] = []
    for task, of_base in next(iter(logged.values())).items():
        for name in sorted({sample["filter"] for sample in of_base}):
            by_id = [{one["doc_id"]: one for one in found[task] if one["filter"] == name} for found in logged.values()]
            rows = [[one[index] for one in by_id] for index in by_id[0]]
            types = {_task_type(row) for row in rows}
            for group in [None, *sorted(one for one in types if one is not None)] if len(types) > 1 else [None]:
                of_group = [row for row in rows if group in (None, _task_type(row))]
                for metric in dict.fromkeys(metric for row in of_group for metric in row[0]["metrics"]):
                    lines.append(_line(task, group, metric, list(logged), of_group))
    return [line for line in lines if line]


def _task_type(samples: Samples) -> int | None:
    doc = samples[0]["doc"]
    return doc.get("task_type") if isinstance(doc, Mapping) else None


def _line(task: str, group: int | None, metric: str, models: Sequence[str], rows: Sequence[Samples]) -> Line | None:
    perplexity = metric.endswith("perplexity")
    figures = [[one[metric] for one in row] for row in rows if metric in row[0]]
    pairs = [[one if isinstance(one, Sequence) else (one, 1) for one in row] for row in figures]
    if not perplexity and isinstance(figures[0][0], Sequence):
        return None
    table_QM2 = np.array(pairs, dtype=np.float64)
    base_Q, weights_Q = table_QM2[:, 0].T

    def ratio(sums: Array, weights: Array, axis: int = -1) -> Array:
        found: Array = sums.sum(axis) / weights.sum(axis)
        return np.exp(-found) if perplexity else found

    def difference(base: Array, other: Array, weights: Array, axis: int = -1) -> Array:
        return ratio(other, weights, axis) - ratio(base, weights, axis)

    columns = dict(zip(models, table_QM2[:, :, 0].T, strict=True))
    values = {name: _estimate(ratio, column, weights_Q) for name, column in columns.items()}
    differences = {name: _estimate(difference, base_Q, columns[name], weights_Q) for name in models[1:]}
    return Line(task, group, metric, len(figures), values, differences)


def _estimate(statistic: Callable[..., Array], *columns: Array) -> Estimate:
    from scipy.stats import bootstrap

    value = float(statistic(*columns))
    if len(columns[0]) < 2:
        return Estimate(value, -np.inf, np.inf)
    options = {"n_resamples": RESAMPLES, "batch": 100, "confidence_level": LEVEL, "method": "percentile", "rng": 0}
    low, high = bootstrap(columns, statistic, paired=True, vectorized=True, **options).confidence_interval
    return Estimate(value, float(low), float(high))


def markdown(lines: Sequence[Line], type_names: Mapping[int, str]) -> str:
    """The lines as a table, with the names of task types."""
    from pytablewriter import MarkdownTableWriter

    models = list(lines[0].values) if lines else []
    rows = []
    for line in lines:
        kind = "all" if line.task_type is None else type_names.get(line.task_type, str(line.task_type))
        figures = [_cell(line.values[name], line.differences.get(name)) for name in models]
        rows.append([line.task, kind, f"{line.samples:,}", line.metric, *figures])
    table = MarkdownTableWriter(headers=["task", "type", "samples", "metric", *models], value_matrix=rows)
    return str(table.dumps())


def _cell(value: Estimate, difference: Estimate | None) -> str:
    if difference is None:
        return f"{value.value:.4g} [{value.low:.3g}, {value.high:.3g}]"
    return f"{value.value:.4g}, {difference.value:+.3g} [{difference.low:+.3g}, {difference.high:+.3g}]"
