"""From result files to contrasts at equal learning, with intervals over seeds; REGISTERED.md has the definitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from scipy import stats

from experiments.runs import METHODS, Plan, Run, kept_rates, kind_of, learning, read_halves, run_of

Axis = Literal["learning", "kl"]
CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its Student-t interval over n values."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]".replace("-", "−")


def t_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of at least two values."""
    mean = float(np.mean(values))
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=mean, scale=stats.sem(values))
    return Interval(mean, float(low), float(high), len(values))


def axis_of(result: Mapping[str, Any], axis: Axis) -> list[float]:
    """Learning, or KL to the base model on knowledge texts, at each checkpoint."""
    return learning(result) if axis == "learning" else [point["kl_knowledge"] for point in result["checkpoints"]]


def rise_at(result: Mapping[str, Any], place: float, axis: Axis, per_item: bool = False) -> Any:
    """Rise of the knowledge loss where a run first reaches a place of an axis, by linear interpolation.

    Args:
        result: A run.
        place: Value of the axis, at most its largest value in the run.
        axis: Learning or KL.
        per_item: For each item instead of the mean; needs `knowledge_items`.

    Returns:
        The rise in nats, or an array of it.
    """
    points = result["checkpoints"]
    values = [read_halves(p["knowledge_items"]) if per_item else p["knowledge_loss"] for p in points]
    xs = axis_of(result, axis)
    end = next((i for i, x in enumerate(xs) if x >= place and i > 0), len(xs) - 1)
    span = xs[end] - xs[end - 1]
    share = min(1.0, max(0.0, (place - xs[end - 1]) / span)) if span else 1.0
    return values[end - 1] + share * (values[end] - values[end - 1]) - values[0]


def pairs(
    plan: Plan, results: Sequence[Mapping[str, Any]], method: str, reference: str
) -> Iterator[list[tuple[Mapping[str, Any], Mapping[str, Any]]]]:
    """Yield, for each seed that has all of them, the runs of two methods, paired by the rank of their kept rates."""
    found = {run_of(result): result for result in results}
    rates = [_rates(plan, results, name) for name in (method, reference)]
    if {method, reference} & set(plan.variants):
        rates = [each[-1:] for each in rates]
    for seed in range(plan.seeds):
        runs = [(Run(method, a, seed), Run(reference, b, seed)) for a, b in zip(*rates, strict=True)]
        if all(run in found for pair in runs for run in pair):
            yield [(found[first], found[second]) for first, second in runs]


def contrast(
    plan: Plan, results: Sequence[Mapping[str, Any]], method: str, reference: str, axis: Axis = "learning"
) -> Interval | None:
    """Rise of the knowledge loss of one method minus that of another, at the smaller of their final places.

    Args:
        plan: The grid.
        results: Its results.
        method: One method.
        reference: The other.
        axis: What is equal.

    Returns:
        The interval over seeds, each the mean over the kept rates; None for fewer than two seeds.
    """
    seeds = [
        float(np.mean([_difference(*pair, axis) for pair in of_seed]))
        for of_seed in pairs(plan, results, method, reference)
    ]
    return t_interval(seeds) if len(seeds) > 1 else None


def contrast_over_items(plan: Plan, results: Sequence[Mapping[str, Any]], method: str, reference: str) -> Interval:
    """The contrast at equal learning with its interval over items, each the mean over seeds and rates."""
    every = [pair for of_seed in pairs(plan, results, method, reference) for pair in of_seed]
    return t_interval(np.mean([_difference(*pair, "learning", per_item=True) for pair in every], axis=0))


def _difference(first: Mapping[str, Any], second: Mapping[str, Any], axis: Axis, per_item: bool = False) -> Any:
    place = min(axis_of(first, axis)[-1], axis_of(second, axis)[-1])
    return rise_at(first, place, axis, per_item) - rise_at(second, place, axis, per_item)


def _rates(plan: Plan, results: Sequence[Mapping[str, Any]], method: str) -> tuple[float, ...]:
    return kept_rates(plan, results, kind_of(method))


def table(plan: Plan, results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Mean over seeds of what the kept runs end with, on all items.

    Args:
        plan: The grid.
        results: Its results, with the first seed complete.

    Returns:
        One row a method and rate.
    """
    order = {name: place for place, name in enumerate(METHODS)}
    kept = [result for result in results if result["rate"] in _rates(plan, results, result["method"])]
    rows = [{"method": r["method"], "rate": r["rate"], **r["final"], "learning": learning(r)[-1]} for r in kept]
    frame = pd.DataFrame(rows).drop(columns=["knowledge_items"], errors="ignore")
    grouped = frame.groupby(["method", "rate"])
    means = grouped.mean().assign(seeds=grouped.size()).reset_index()
    return means.sort_values(["method", "rate"], key=lambda c: c.map(order) if c.name == "method" else c)


def trajectories(plan: Plan, results: Sequence[Mapping[str, Any]], field: str = "checkpoints") -> pd.DataFrame:
    """Learning, rise of the knowledge loss and KL of the runs at the higher kept rate, one row a checkpoint.

    Args:
        plan: The grid.
        results: Its results.
        field: `checkpoints` or `interpolated`.

    Returns:
        Columns method, seed, place, learning, rise, kl.
    """
    rows = []
    for result in results:
        if result["rate"] == _rates(plan, results, result["method"])[-1]:
            start = result["checkpoints"][0]
            steps = result[field] if field == "checkpoints" else [start, *result[field], result["checkpoints"][-1]]
            for place, point in enumerate(steps):
                rows.append(
                    {
                        "method": result["method"],
                        "seed": result["seed"],
                        "place": place,
                        "learning": start["downstream_loss"] - point["downstream_loss"],
                        "rise": point["knowledge_loss"] - start["knowledge_loss"],
                        "kl": point["kl_knowledge"],
                    }
                )
    return pd.DataFrame(rows)
