"""The learning rate of each arm, chosen on the validation split; what is told of it is of the test split.

Two rules, since there are two wishes. The first tunes as one does who fine-tunes for a task; the second as one does who
would keep what the model knows, and gives up at most a point of full fine-tuning's accuracy for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from experiments.knowledge_forgetting.analysis.results import Sets
from experiments.knowledge_forgetting.analysis.studies import Point

GIVEN_UP: Final = 0.01
STRONGEST: Final = "lora_all"
BY_DOWNSTREAM: Final = "the highest downstream accuracy on validation; of equals, the most knowledge"
BY_KNOWLEDGE: Final = (
    "the most knowledge on validation among those at most one point of downstream accuracy below full fine-tuning, "
    "tuned by the first rule"
)


@dataclass(frozen=True)
class Tuned:
    """An arm at the learning rate that a rule chose.

    Attributes:
        arm: The arm.
        point: Its runs at that rate; None if no rate of the arm fits the rule.
        at_edge: Whether the rate is the lowest or highest that was tried, so that a better one may lie outside.
    """

    arm: str
    point: Point | None
    at_edge: bool


def tune(points: Sequence[Point], seeds: tuple[int, ...], sets: Sets) -> dict[str, Tuned]:
    """Chooses by the first rule, `BY_DOWNSTREAM`.

    Args:
        points: Of the frontier, each with all seeds.
        seeds: Over which means are taken.
        sets: Which sets count as what.

    Returns:
        For each arm its choice.
    """
    return {
        arm: _chosen(arm, own, max(own, key=lambda point: _validation(point, seeds, sets)))
        for arm, own in _by_arm(points).items()
    }


def tune_for_knowledge(points: Sequence[Point], seeds: tuple[int, ...], sets: Sets) -> dict[str, Tuned]:
    """Chooses by the second rule, `BY_KNOWLEDGE`.

    Args:
        points: Of the frontier, each with all seeds.
        seeds: Over which means are taken.
        sets: Which sets count as what.

    Returns:
        For each arm its choice; nothing as long as there are no runs of full fine-tuning.
    """
    full = tune(points, seeds, sets).get("full")
    if full is None or full.point is None:
        return {}
    floor = _validation(full.point, seeds, sets)[0] - GIVEN_UP
    chosen = {}
    for arm, own in _by_arm(points).items():
        fit = [point for point in own if _validation(point, seeds, sets)[0] >= floor]
        chosen[arm] = _chosen(arm, own, max(fit, key=lambda p: _validation(p, seeds, sets)[::-1], default=None))
    return chosen


def recipe_levels(tuned: Mapping[str, Tuned], seeds: tuple[int, ...], sets: Sets) -> list[Point]:
    """The points at whose downstream accuracy recipes are read.

    Args:
        tuned: What `tune` chose.
        seeds: Over which means are taken.
        sets: Which sets count as what.

    Returns:
        What learns least of the chosen points by validation, as every arm gets so far; and that of `STRONGEST`, if
        it learns more, as that is what a recipe for every linear is up against.
    """
    points = [one.point for one in tuned.values() if one.point]
    if not points:
        return []
    least = min(points, key=lambda point: _validation(point, seeds, sets))
    strongest = [point for point in points if point.arm == STRONGEST != least.arm]
    return [least, *strongest]


def level_of_changed_arms(
    points: Sequence[Point], tuned: Mapping[str, Tuned], seeds: tuple[int, ...], sets: Sets
) -> list[Point]:
    """The point at whose accuracy a recipe beyond all arms is read: where arms with the same changes all get.

    Args:
        points: All points of the main number of rows.
        tuned: What `tune` chose.
        seeds: Over which means are taken.
        sets: Which sets count as what.

    Returns:
        Of the changes with which full fine-tuning learns most, what learns least of the arms' best points, all by
        validation. Nothing if there are no changes with which full fine-tuning learns more than every tuned arm.
    """

    def learnt(point: Point) -> tuple[float, float]:
        return _validation(point, seeds, sets)

    changed = [point for point in points if point.changes and set(seeds) <= set(point.runs)]
    of_full = [point for point in changed if point.arm == "full"]
    others = [one.point for one in tuned.values() if one.point]
    most = max(of_full, key=learnt, default=None)
    if most is None or not all(learnt(most)[0] > learnt(point)[0] for point in others):
        return []
    alike = _by_arm([point for point in changed if point.changes == most.changes])
    return [min((max(own, key=learnt) for own in alike.values()), key=learnt)]


def _by_arm(points: Sequence[Point]) -> dict[str, list[Point]]:
    arms = dict.fromkeys(point.arm for point in points)
    return {arm: [point for point in points if point.arm == arm] for arm in arms}


def _validation(point: Point, seeds: tuple[int, ...], sets: Sets) -> tuple[float, float]:
    """Downstream accuracy and knowledge, means over seeds; rounded, so that equals are equal."""
    means = [
        sum(point.runs[seed].mean("validation", names) for seed in seeds) / len(seeds)
        for names in (sets.downstream, sets.knowledge)
    ]
    return round(means[0], 9), round(means[1], 9)


def _chosen(arm: str, own: list[Point], point: Point | None) -> Tuned:
    return Tuned(arm, point, point is not None and point in (own[0], own[-1]))
