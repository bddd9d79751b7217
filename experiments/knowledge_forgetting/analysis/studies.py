"""Which runs belong to which study: told by their settings alone, so that a grid may grow in any order."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final

from experiments.knowledge_forgetting.analysis.results import Run
from experiments.knowledge_forgetting.analysis.style import LOOKS, rank, words

RATES: Final = 4
SEEDS: Final = 3


@dataclass(frozen=True, eq=False)
class Point:
    """Runs that differ in their seed alone.

    Attributes:
        arm: What was trained.
        learning_rate: Peak of the schedule.
        rows: How many rows it was trained on.
        changes: What an ablation set otherwise.
        runs: By seed, ascending.
    """

    arm: str
    learning_rate: float
    rows: int
    changes: Mapping[str, Any]
    runs: Mapping[int, Run]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Its seeds, ascending."""
        return tuple(self.runs)


@dataclass(frozen=True)
class Ablation:
    """Points of one arm at one learning rate that differ in one setting.

    Attributes:
        arm: What was trained.
        key: The setting.
        learning_rate: Of all of them.
        own: The point without a change, of as many rows; None if there is none.
        points: The others.
    """

    arm: str
    key: str
    learning_rate: float
    own: Point | None
    points: tuple[Point, ...]


def points_of(runs: Iterable[Run]) -> list[Point]:
    """Groups runs that differ in their seed alone.

    Args:
        runs: Any runs.

    Returns:
        The points by arm, learning rate, rows and changes.
    """
    groups: dict[tuple[Any, ...], dict[int, Run]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: run.seed):
        key = (rank(run.arm), run.learning_rate, run.rows, json.dumps(run.changes, sort_keys=True))
        groups[key][run.seed] = run
    return [_point(groups[key]) for key in sorted(groups)]


def _point(runs: dict[int, Run]) -> Point:
    run = next(iter(runs.values()))
    return Point(run.arm, run.learning_rate, run.rows, run.changes, runs)


def main_rows(points: Sequence[Point]) -> int | None:
    """The number of rows at which the arms are compared.

    Args:
        points: All points.

    Returns:
        That of most runs without changes, of several the largest; None if there are no runs.
    """
    runs: Counter[int] = Counter()
    for point in points:
        if not point.changes:
            runs[point.rows] += len(point.runs)
    return max(runs, key=lambda rows: (runs[rows], rows), default=None)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points that compare the arms.

    Args:
        points: All points.

    Returns:
        Those without changes, of the main number of rows.
    """
    rows = main_rows(points)
    return [point for point in points if not point.changes and point.rows == rows]


def complete(points: Sequence[Point]) -> tuple[list[Point], tuple[int, ...]]:
    """The largest part of an unfinished grid in which every point has every seed.

    Args:
        points: Of the frontier.

    Returns:
        The points of the part with the most runs, and its seeds.
    """
    known = sorted({seed for point in points for seed in point.runs})
    parts = [
        ([point for point in points if set(seeds) <= set(point.runs)], seeds)
        for count in range(1, len(known) + 1)
        for seeds in combinations(known, count)
    ]
    return max(parts, key=lambda part: (len(part[0]) * len(part[1]), len(part[1])), default=([], ()))


def rows_study(points: Sequence[Point]) -> list[list[Point]]:
    """Points that differ in the number of rows.

    Args:
        points: All points.

    Returns:
        For each arm and learning rate with several numbers of rows, its points by that number.
    """
    lines: dict[tuple[str, float], list[Point]] = defaultdict(list)
    for point in points:
        if not point.changes:
            lines[point.arm, point.learning_rate].append(point)
    return [line for line in lines.values() if len(line) > 1]


def ablations(points: Sequence[Point]) -> list[Ablation]:
    """Points that differ from their arm in one setting.

    Args:
        points: All points.

    Returns:
        One ablation for each arm, setting and learning rate.
    """
    groups: dict[tuple[str, str, float, int], list[Point]] = defaultdict(list)
    for point in points:
        if len(point.changes) == 1:
            groups[point.arm, next(iter(point.changes)), point.learning_rate, point.rows].append(point)
    own = {(point.arm, point.learning_rate, point.rows): point for point in points if not point.changes}
    return [
        Ablation(arm, key, rate, own.get((arm, rate, rows)), tuple(group))
        for (arm, key, rate, rows), group in sorted(groups.items(), key=lambda item: (rank(item[0][0]), item[0]))
    ]


def treated_alike(points: Sequence[Point], seeds: Sequence[int]) -> list[list[Point]]:
    """Points of full fine-tuning and of other arms in which the same was changed.

    Args:
        points: All points.
        seeds: Those over which arms are compared; others may have served to choose the change.

    Returns:
        Of the main number of rows and of these seeds, for each change that full fine-tuning and another arm have
        after `complete`, theirs; the more was changed, the later.
    """
    rows = main_rows(points)
    groups: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        runs = {seed: run for seed, run in point.runs.items() if seed in seeds}
        if point.changes and point.rows == rows and runs:
            groups[json.dumps(point.changes, sort_keys=True)].append(replace(point, runs=runs))
    arms = {changes: {point.arm for point in complete(group)[0]} for changes, group in groups.items()}
    alike = [groups[changes] for changes, of in arms.items() if "full" in of and len(of) > 1]
    return sorted(alike, key=lambda group: len(group[0].changes))


def order(value: Any) -> tuple[bool, float, str]:
    """What values of a setting are sorted by: numbers by size, then others by their JSON."""
    number = isinstance(value, int | float)
    return (not number, float(value) if number else 0.0, json.dumps(value))


def missing(points: Sequence[Point], compared: Sequence[Point]) -> list[str]:
    """What the comparison of the arms still lacks.

    Args:
        points: Of the frontier.
        compared: Those that `complete` left.

    Returns:
        A sentence for each arm that has no runs or too few learning rates, and for each point with too few seeds.
    """
    by_arm: dict[str, list[Point]] = {arm: [] for arm in LOOKS if arm != "base"}
    for point in points:
        by_arm.setdefault(point.arm, []).append(point)
    sentences = []
    for arm, own in by_arm.items():
        if len(own) < RATES:
            sentences.append(f"{words(arm)}: {len(own)} learning rates of at least {RATES}.")
        sentences += [_missing_seeds(point, point in compared) for point in own if len(point.runs) < SEEDS]
    return sentences


def _missing_seeds(point: Point, is_compared: bool) -> str:
    left_out = "" if is_compared else "; left out wherever arms are tuned and compared"
    return f"{words(point.arm)} at {point.learning_rate:g}: {len(point.runs)} seeds of at least {SEEDS}{left_out}."
