"""How sure the figures are: a bootstrap over items and seeds that keeps every comparison paired.

Each draw takes items again with replacement, *the same ones for every run*, and seeds again with replacement, *the
same ones for every arm*: what runs share, hard items or an unlucky order of rows, cancels in a difference. Items and
seeds are crossed (every seed is asked the same items), so they are drawn independently of each other.

S − 1 of S seeds are drawn, which makes the variance that comes from the seeds right in expectation (drawing S would
make it a factor (S − 1)/S too small). It cannot make few seeds many: where the seeds' spread dominates, the 95 %
interval of three seeds is their range, which covers the truth about three times in four.

Shape letters: B draws, the first of them what was observed; I items; N runs; S seeds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.knowledge_forgetting.analysis.results import Results, Run
from experiments.knowledge_forgetting.analysis.studies import Point
from experiments.knowledge_forgetting.scale import Split
from loramoe.evaluation.statistics import LEVEL, Array, Estimate

DRAWS: Final = 10_000
SEED: Final = 0
_CHUNK: Final = 500  # draws at once: 500 × 3,000 items in float32 are 6 MB


@dataclass(frozen=True)
class Figures:
    """What is told of a point, in every draw; the first entry is what was observed.

    Attributes:
        knowledge: Accuracy on knowledge [B].
        kept: That as a share of the base's on the same items, both above chance; by set, then the mean [B]. NaN in
            draws in which the base is not above chance.
        downstream: Accuracy on downstream tasks [B].
    """

    knowledge: Array
    kept: Array
    downstream: Array


class Bootstrap:
    """Draws of items for all runs of a scale, and of seeds for any of its points.

    Args:
        results: All runs.
        draws: How many.
        split: Whose items.
    """

    def __init__(self, results: Results, draws: int = DRAWS, split: Split = "test") -> None:
        runs, sets = [results.base, *results.trained, *results.beyond], results.sets
        self._draws = draws
        self._column = {run.file: n for n, run in enumerate(runs)}
        knowledge = {name: _accuracy(runs, split, name, draws) for name in sets.knowledge}
        self._knowledge_BN = _mean(knowledge.values())
        self._kept_BN = _mean(_kept(of_set, sets.chance[name]) for name, of_set in knowledge.items())
        self._downstream = {name: _accuracy(runs, split, name, draws) for name in sets.downstream}
        self._downstream_BN = _mean(self._downstream.values())
        self.base = self._figures([results.base])

    def without(self, name: str) -> Bootstrap:
        """The same draws, with a downstream set left out of the mean.

        Args:
            name: The set; not the only one.

        Returns:
            Another bootstrap.
        """
        other = copy.copy(self)
        other._downstream = {key: of_set for key, of_set in self._downstream.items() if key != name}
        other._downstream_BN = _mean(other._downstream.values())
        return other

    def point(self, point: Point, seeds: tuple[int, ...] | None = None) -> Figures:
        """Figures of a point: means over seeds.

        Args:
            point: Runs that differ in their seed alone.
            seeds: Which of them; None takes all. Points are paired if they are asked for the same number of seeds.

        Returns:
            Its figures in every draw.
        """
        return self._figures([point.runs[seed] for seed in (point.seeds if seeds is None else seeds)])

    def _figures(self, runs: Sequence[Run]) -> Figures:
        columns = [self._column[run.file] for run in runs]
        weights_BS = seed_weights(len(runs), self._draws)
        of_runs = self._knowledge_BN, self._kept_BN, self._downstream_BN
        return Figures(*((weights_BS * figure_BN[:, columns]).sum(axis=1) for figure_BN in of_runs))


def estimate(values_B: Array) -> Estimate:
    """The observed value and its interval.

    Args:
        values_B: A figure in every draw, NaN where a draw has none; the first is what was observed.

    Returns:
        The value, and the 95 % percentile interval of the draws that have one.
    """
    low, high = np.nanquantile(values_B[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values_B[0]), float(low), float(high))


def _accuracy(runs: Sequence[Run], split: Split, name: str, draws: int) -> Array:
    return resampled_means(np.stack([run.items[split][name] for run in runs], axis=1), draws)


def _kept(accuracy_BN: Array, chance: float) -> Array:
    """Of a set, the share of the base's knowledge; the base is the first run."""
    above_BN = accuracy_BN - chance
    base_B1 = above_BN[:, :1]
    return above_BN / np.where(base_B1 > 0, base_B1, np.nan)


def _mean(of_sets: Iterable[Array]) -> Array:
    arrays = list(of_sets)
    return np.asarray(sum(arrays)) / len(arrays)


def resampled_means(right_IN: NDArray[np.bool_], draws: int) -> Array:
    """Accuracy of every run on items drawn with replacement, the same ones for all runs.

    The draws depend on the number of items alone. So they stay the same while a grid grows, and sets that ask for the
    same facts in several forms, in the same order, stay together; sets with nothing in common are none the worse.

    Args:
        right_IN: Which items each run has right.
        draws: How many.

    Returns:
        Shares [1 + draws, N], the first line of all items once.
    """
    items = len(right_IN)
    generator = np.random.default_rng([SEED, items])
    right = right_IN.astype(np.float32)  # sums of ones are exact in float32 up to 16 million
    sums = [right.sum(axis=0, keepdims=True)]
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        drawn = generator.integers(items, size=(size, items)) + items * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * items).reshape(size, items)
        sums.append(times.astype(np.float32) @ right)
    return np.concatenate(sums).astype(np.float64) / items


def seed_weights(seeds: int, draws: int) -> Array:
    """How much each seed counts in a draw.

    Args:
        seeds: How many there are.
        draws: How many.

    Returns:
        Shares [1 + draws, S], in the first line all equal; the same ones for the same number of seeds.
    """
    if seeds == 1:
        return np.ones((1 + draws, 1))
    drawn = np.random.default_rng([SEED, 0]).integers(seeds, size=(draws, seeds - 1))
    times_BS = (drawn[:, :, None] == np.arange(seeds)).sum(axis=1)
    return np.concatenate([np.full((1, seeds), 1 / seeds), times_BS / (seeds - 1)])
