"""Figures of base model and adapters from lm-eval's logged samples, with intervals, and adapters against the base.

All models answer the same samples. So a difference is resampled pair by pair: easy and hard samples cancel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Logged = Mapping[str, Sequence[Mapping[str, Any]]]
"""What lm-eval logs of one model: the samples of each task."""
Line = dict[str, Any]
"""`task`, `task_type` (None: all samples), `metric`, number of `samples`; `values` and `differences` to the base by
the name of the model, each {value, low, high}: a figure and its interval of 95 %."""


def compare(logged: Mapping[str, Logged]) -> list[Line]:
    """Compares models, the base model first, on the samples that lm-eval has logged.

    A figure is a ratio of sums: a mean, or a perplexity of log-likelihoods and their tokens. Metrics of a whole corpus,
    such as BLEU, have no figure of a sample, and are left out.

    Returns:
        For all samples of a task, and for those of each type where there are several, a line for each metric.
    """
    found: dict[Any, dict[int, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for model, tasks in logged.items():
        for task, sample in ((task, sample) for task, samples in tasks.items() for sample in samples):
            task_type = sample["doc"].get("task_type") if isinstance(sample["doc"], Mapping) else None
            for metric in sample["metrics"]:
                for group in (None,) if task_type is None else (None, task_type):
                    found[task, sample["filter"], metric, group][sample["doc_id"]][model] = sample[metric]
    lines = []
    for (task, name, metric, group), by_sample in found.items():
        is_whole_task = group is not None and len(by_sample) == len(found[task, name, metric, None])
        if not is_whole_task and (figures := _figures(metric, list(by_sample.values()))):
            lines.append({"task": task, "task_type": group, "metric": metric, "samples": len(by_sample), **figures})
    order = list(next(iter(logged.values())))
    return sorted(lines, key=lambda line: (order.index(line["task"]), line["task_type"] is not None, line["task_type"]))


def _figures(metric: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    perplexity = metric.endswith("perplexity")
    if not perplexity and isinstance(next(iter(samples[0].values())), Sequence):
        return None
    pairs = [[one if isinstance(one, Sequence) else (one, 1) for one in sample.values()] for sample in samples]
    table_QM2 = np.array(pairs, dtype=np.float64)
    weights_Q, base_Q = table_QM2[:, 0, 1], table_QM2[:, 0, 0]

    def figure(weights: Array, *models: Array, axis: int = -1) -> Array:
        """The figure of a model, or of the second of two models minus that of the first."""
        found = [sums.sum(axis) / weights.sum(axis) for sums in models]
        figures: list[Array] = [np.exp(-one) for one in found] if perplexity else found
        return figures[0] if len(figures) == 1 else figures[1] - figures[0]

    models = dict(zip(samples[0], table_QM2[:, :, 0].T, strict=True))
    values = {name: _estimate(figure, weights_Q, model_Q) for name, model_Q in models.items()}
    others = list(models.items())[1:]
    return {"values": values, "differences": {name: _estimate(figure, weights_Q, base_Q, one) for name, one in others}}


def _estimate(figure: Callable[..., Array], *columns: Array) -> dict[str, float]:
    from scipy.stats import bootstrap

    value, low, high = float(figure(*columns)), -np.inf, np.inf
    if len(columns[0]) > 1:
        options = {"n_resamples": 2000, "batch": 100, "confidence_level": 0.95, "method": "percentile", "rng": 0}
        low, high = bootstrap(columns, figure, paired=True, vectorized=True, **options).confidence_interval
    return {"value": value, "low": float(low), "high": float(high)}


def markdown(lines: Sequence[Line], type_names: Mapping[int, str]) -> str:
    """The lines as a table, with the names of task types."""
    from pytablewriter import MarkdownTableWriter

    models = list(lines[0]["values"]) if lines else []
    rows = []
    for line in lines:
        kind = "all" if line["task_type"] is None else type_names.get(line["task_type"], str(line["task_type"]))
        figures = [_cell(line["values"][name], line["differences"].get(name)) for name in models]
        rows.append([line["task"], kind, f"{line['samples']:,}", line["metric"], *figures])
    table = MarkdownTableWriter(headers=["task", "type", "samples", "metric", *models], value_matrix=rows)
    return str(table.dumps())


def _cell(figure: dict[str, float], difference: dict[str, float] | None) -> str:
    if difference is None:
        return "{value:.4g} [{low:.3g}, {high:.3g}]".format_map(figure)
    return f"{figure['value']:.4g}, " + "{value:+.3g} [{low:+.3g}, {high:+.3g}]".format_map(difference)
