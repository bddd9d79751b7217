"""Every recipe read like an arm: over its learning rates, the most knowledge at at least a downstream accuracy.

A recipe is an arm, as it is or with changes. Recipes are chosen on validation, so validation and test stand side by
side. The accuracy is the same for all: that of an arm at its tuned learning rate (`selection.recipe_levels`). A recipe
is compared with its own arm over the learning rates and seeds that both have: whoever tries more rates finds more.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.knowledge_forgetting.analysis.bootstrap import Bootstrap, estimate
from experiments.knowledge_forgetting.analysis.matched import Reading, difference, read_at, stacked
from experiments.knowledge_forgetting.analysis.studies import Point, complete
from experiments.knowledge_forgetting.scale import Split
from loramoe.evaluation.statistics import Array, Estimate


@dataclass(frozen=True)
class Told:
    """What is told of a recipe on one split.

    Attributes:
        kept: Share of the base's knowledge that it keeps at the level; None if it does not get so far.
        more: That less its own arm's; None if either does not get so far, or nothing was changed.
        shared_seeds: How many seeds it and its own arm have in common.
        most_downstream: The highest downstream accuracy at any of its rates.
    """

    kept: Reading | None
    more: Reading | None
    shared_seeds: int
    most_downstream: float


@dataclass(frozen=True)
class AtRate:
    """What a recipe keeps and learns at one learning rate, test split, mean over all the seeds that it has there."""

    learning_rate: float
    seeds: tuple[int, ...]
    kept: Estimate
    downstream: Estimate


@dataclass(frozen=True)
class RecipeSummary:
    """An arm, as it is or with changes.

    Attributes:
        arm: The arm.
        changes: What differs from it; nothing for the arm itself.
        trainable_parameters: How many.
        learning_rates: Over which it is read at a level.
        seeds: That all of them have.
        told: By split.
        at_rates: At each of its learning rates, those included that lack some of these seeds.
    """

    arm: str
    changes: dict[str, Any]
    trainable_parameters: int
    learning_rates: list[float]
    seeds: tuple[int, ...]
    told: dict[Split, Told]
    at_rates: list[AtRate]


@dataclass(frozen=True)
class Recipes:
    """All recipes at one level.

    Attributes:
        arm: Whose tuned downstream accuracy the level is.
        changes: What differs from that arm; nothing for the arm itself.
        level: By split.
        ranked: The recipes, by what they keep on validation; at the end those that do not get so far,
            by how far they get.
    """

    arm: str
    changes: dict[str, Any]
    level: dict[Split, Estimate]
    ranked: list[RecipeSummary]


def rank_recipes(
    points: Sequence[Point], least: Point, seeds: tuple[int, ...], bootstraps: Mapping[Split, Bootstrap]
) -> Recipes:
    """Reads every recipe at the downstream accuracy of a point.

    Args:
        points: All points of the main number of rows.
        least: The point.
        seeds: Its seeds.
        bootstraps: By split.

    Returns:
        The recipes by rank.
    """
    lines: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        lines.setdefault((point.arm, json.dumps(point.changes, sort_keys=True)), []).append(point)
    levels = {split: bootstrap.point(least, seeds).downstream for split, bootstrap in bootstraps.items()}
    recipes = [_recipe(line, lines.get((arm, "{}"), []), levels, bootstraps) for (arm, _), line in lines.items()]
    recipes.sort(key=_rank)
    level = {split: estimate(level_B) for split, level_B in levels.items()}
    return Recipes(least.arm, dict(least.changes), level, recipes)


def _rank(recipe: RecipeSummary) -> tuple[bool, float]:
    told = recipe.told["validation"]
    return told.kept is None, -(told.kept.value.value if told.kept else told.most_downstream)


def _recipe(
    line: Sequence[Point], own: Sequence[Point], levels: Mapping[Split, Array], bootstraps: Mapping[Split, Bootstrap]
) -> RecipeSummary:
    points, seeds = complete(line)
    first = points[0]
    return RecipeSummary(
        arm=first.arm,
        changes=dict(first.changes),
        trainable_parameters=first.runs[seeds[0]].trainable_parameters,
        learning_rates=[point.learning_rate for point in points],
        seeds=seeds,
        told={
            split: Told(
                _read(points, seeds, level_B, bootstraps[split])[1],
                *_more(line, own if first.changes else [], level_B, bootstraps[split]),
                max(float(bootstraps[split].point(point, seeds).downstream[0]) for point in points),
            )
            for split, level_B in levels.items()
        },
        at_rates=[_at_rate(point, bootstraps["test"]) for point in line],
    )


def _at_rate(point: Point, bootstrap: Bootstrap) -> AtRate:
    figures = bootstrap.point(point, point.seeds)
    return AtRate(point.learning_rate, point.seeds, estimate(figures.kept), estimate(figures.downstream))


def _read(
    points: Sequence[Point], seeds: tuple[int, ...], level_B: Array, bootstrap: Bootstrap
) -> tuple[Array, Reading | None]:
    return read_at(*stacked([bootstrap.point(point, seeds) for point in points]), level_B)


def _more(
    line: Sequence[Point], own: Sequence[Point], level_B: Array, bootstrap: Bootstrap
) -> tuple[Reading | None, int]:
    own_by_rate = {point.learning_rate: point for point in own}
    shared, seeds = complete(
        [_of_seeds(p, own_by_rate[p.learning_rate]) for p in line if p.learning_rate in own_by_rate]
    )
    if not shared:
        return None, 0
    theirs = [own_by_rate[point.learning_rate] for point in shared]
    one, other = (_read(points, seeds, level_B, bootstrap) for points in (shared, theirs))
    return difference(one, other), len(seeds)


def _of_seeds(point: Point, other: Point) -> Point:
    """A point without the seeds that another has not."""
    return dataclasses.replace(point, runs={seed: run for seed, run in point.runs.items() if seed in other.runs})
