"""Knowledge at matched downstream accuracy: what an arm keeps, once it has learnt as much as another.

Comparing arms at their tuned learning rates compares two figures at once. Here the line through an arm's learning rates
(means over seeds, as the frontier figure draws it) is read at a given downstream accuracy: the most knowledge on that
line at *at least* this accuracy. Between two rates it is interpolated, beyond the outermost ones never extrapolated: an
arm that does not get so far has no figure there, and one whose lowest rate is already beyond has a lower bound.

Shape letters: B draws of the bootstrap, the first of them what was observed; P points on a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from experiments.knowledge_forgetting.analysis.bootstrap import Figures, estimate
from experiments.knowledge_forgetting.arms import ARMS
from loramoe.evaluation.statistics import Array, Estimate

REFERENCES: Final = ("full", "lora_mlp", "lora_all", "loramoe_free")
UNCHANGED: Final = "unchanged"
LEVEL_ARMS: Final = ("full", "lora_mlp", "lora_all")
MOSTLY_KEPT: Final = 0.75  # below, a learning rate was too high, and its downstream accuracy is of no interest
_STEPS: Final = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
_FEWEST_LEVELS: Final = 3
_MOST_LEVELS: Final = 5


@dataclass(frozen=True)
class Reading:
    """What a line says at a level.

    Attributes:
        value: What it says, with its interval.
        is_bound: Whether the value is a lower bound: it is that of an end of the line that lies beyond the level, where
            a rate outside of those that were tried may have more.
        reached: Share of the draws in which the line gets as far as the level; the interval is of these.
    """

    value: Estimate
    is_bound: bool
    reached: float


@dataclass(frozen=True)
class Level:
    """All arms at one downstream accuracy.

    Attributes:
        name: An arm, whose tuned downstream accuracy it is; `UNCHANGED`, that of full fine-tuning as it is, beside arms
            in which something was changed; or "fixed".
        downstream: The accuracy. An arm's is drawn again with the items and seeds.
        kept: For each arm, the share of the base's knowledge that it keeps; None if it does not get so far.
        differences: For each reference arm and arm, what the arm keeps more, in the draws in which both get so far;
            None if either has no figure or a bound.
    """

    name: str
    downstream: Estimate
    kept: dict[str, Reading | None]
    differences: dict[str, dict[str, Reading | None]]


def most_at_least(x_BP: Array, y_BP: Array, level_B: Array) -> Array:
    """The largest y on a line through points, where its x is at least a level.

    Args:
        x_BP: The points in their order along the line.
        y_BP: The same points.
        level_B: The level.

    Returns:
        [B]; NaN where all of the line is below the level.
    """
    level_B1 = level_B[:, None]
    at_points = np.where(x_BP >= level_B1, y_BP, -np.inf)
    left, right = x_BP[:, :-1], x_BP[:, 1:]
    crosses = (left < level_B1) != (right < level_B1)
    share = (level_B1 - left) / np.where(crosses, right - left, 1.0)
    between = np.where(crosses, y_BP[:, :-1] + share * (y_BP[:, 1:] - y_BP[:, :-1]), -np.inf)
    most_B = np.concatenate([at_points, between], axis=1).max(axis=1)
    return np.where(np.isfinite(most_B), most_B, np.nan)


def read_at(x_BP: Array, y_BP: Array, level_B: Array) -> tuple[Array, Reading | None]:
    """Reads a line at a level.

    Args:
        x_BP: The points in their order along the line.
        y_BP: The same points.
        level_B: The level.

    Returns:
        The reading in every draw, and summed up; None if what was observed does not get so far.
    """
    values_B = most_at_least(x_BP, y_BP, level_B)
    if np.isnan(values_B[0]):
        return values_B, None
    ends = np.array([0, -1])
    is_bound = bool(((x_BP[0, ends] > level_B[0]) & (y_BP[0, ends] == values_B[0])).any())
    return values_B, Reading(estimate(values_B), is_bound, float(np.isfinite(values_B[1:]).mean()))


def difference(one: tuple[Array, Reading | None], other: tuple[Array, Reading | None]) -> Reading | None:
    """What one line says more than another, in the draws in which both get so far.

    Args:
        one: What `read_at` returned.
        other: The same of the line to compare with.

    Returns:
        The difference, a bound if either is; None if either has no figure.
    """
    (one_B, first), (other_B, second) = one, other
    if first is None or second is None:
        return None
    values_B = one_B - other_B
    return Reading(estimate(values_B), first.is_bound or second.is_bound, float(np.isfinite(values_B[1:]).mean()))


def fixed_levels(lowest: float, highest: float) -> list[float]:
    """Round accuracies between two.

    Args:
        lowest: The lowest of any arm.
        highest: The highest of any arm.

    Returns:
        Multiples of the coarsest step of which at least three lie between them, and of these the highest five; none if
        the two are too close.
    """
    for step in _STEPS:
        levels = [round(n * step, 6) for n in range(1, round(1 / step)) if lowest < n * step <= highest]
        if len(levels) >= _FEWEST_LEVELS:
            return levels[-_MOST_LEVELS:]
    return []


def match(
    lines: Mapping[str, Sequence[Figures]], tuned: Mapping[str, Figures], unchanged: Figures | None = None
) -> list[Level]:
    """Reads all arms' lines at every level.

    Args:
        lines: For each arm its points by learning rate.
        tuned: For each arm the one at its tuned learning rate.
        unchanged: Full fine-tuning as it is, at its tuned learning rate, if something was changed in the arms.

    Returns:
        The level of `unchanged` first, then those of arms, then fixed ones.
    """
    named = {UNCHANGED: unchanged} if unchanged else {}
    named |= {arm: tuned[arm] for arm in LEVEL_ARMS if arm in tuned}
    levels = [_level(name, figures.downstream, lines) for name, figures in named.items()]
    observed = [accuracy for line in lines.values() for accuracy in _mostly_kept(line)]
    return levels + (_fixed(lines, min(observed), max(observed)) if observed else [])


def match_alike(lines: Mapping[str, Sequence[Figures]]) -> list[list[Level]]:
    """Reads adapters beside the same linears at accuracies between which the line of each of them leads.

    The levels of `match` are spread over all arms, and may miss the range that these share: where two adapters learn
    nearly the same, no level lies between the least that either learns and the most.

    Args:
        lines: For each arm its points by learning rate.

    Returns:
        For each group of two or more adapters beside the same linears the levels; groups without any are left out.
    """
    groups: dict[tuple[str, ...], dict[str, Sequence[Figures]]] = {}
    for arm, line in lines.items():
        if arm in ARMS and ARMS[arm].kind in ("lora", "loramoe"):
            groups.setdefault(ARMS[arm].recipe.targets, {})[arm] = line
    read = []
    for group in groups.values():
        observed = [_mostly_kept(line) for line in group.values()]
        if len(group) > 1 and all(observed):
            read.append(_fixed(group, max(map(min, observed)), min(map(max, observed))))
    return [levels for levels in read if levels]


def stacked(points: Sequence[Figures]) -> tuple[Array, Array]:
    """A line as arrays.

    Args:
        points: Its points.

    Returns:
        Downstream accuracy and share of knowledge kept, both [B, P].
    """
    return np.stack([p.downstream for p in points], axis=1), np.stack([p.kept for p in points], axis=1)


def _mostly_kept(line: Sequence[Figures]) -> list[float]:
    """The observed downstream accuracies of a line, without rates that were too high."""
    return [float(point.downstream[0]) for point in line if point.kept[0] >= MOSTLY_KEPT]


def _fixed(lines: Mapping[str, Sequence[Figures]], lowest: float, highest: float) -> list[Level]:
    like_B = next(iter(lines.values()))[0].downstream
    return [_level("fixed", np.full_like(like_B, level), lines) for level in fixed_levels(lowest, highest)]


def _level(name: str, level_B: Array, lines: Mapping[str, Sequence[Figures]]) -> Level:
    read = {arm: read_at(*stacked(points), level_B) for arm, points in lines.items()}
    differences = {
        reference: {arm: unbounded(difference(read[arm], read[reference])) for arm in lines if arm != reference}
        for reference in REFERENCES
        if reference in lines
    }
    return Level(name, estimate(level_B), {arm: reading for arm, (_, reading) in read.items()}, differences)


def unbounded(difference: Reading | None) -> Reading | None:
    """Leaves a difference out if either of its readings is a bound: it could then be off to either side.

    Args:
        difference: What `difference` returned.

    Returns:
        The same; None if it is of a bound.
    """
    return None if difference is None or difference.is_bound else difference
