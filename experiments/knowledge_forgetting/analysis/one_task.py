"""Whether a finding hangs on one task: two arms compared, and compared again with each task left out.

Downstream accuracy is a mean over few tasks. One that is learnt wholly or hardly, as the seed has it, can decide how
far an arm gets, and so where others are read. What holds with each task left out hangs on none of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from experiments.knowledge_forgetting.analysis import selection
from experiments.knowledge_forgetting.analysis.bootstrap import Bootstrap, Figures, estimate
from experiments.knowledge_forgetting.analysis.matched import Reading, difference, read_at, stacked, unbounded
from experiments.knowledge_forgetting.analysis.results import Sets
from experiments.knowledge_forgetting.analysis.studies import Point
from loramoe.evaluation.statistics import Estimate

PAIRS: Final = (("lora_mlp", "loramoe_paper"), ("lora_all", "loramoe_all"), ("full", "loramoe_all"))


@dataclass(frozen=True)
class Pair:
    """Two arms, compared at the tuned downstream accuracy of the one that learns less.

    Attributes:
        than: The arm to compare with.
        arm: The other.
        left_out: The task that does not count; None if all do.
        downstream: The accuracy at which they are compared.
        keeps_more: What the other keeps more there; None if either has a bound alone.
        learns_more: What the other learns more at its tuned rate.
    """

    than: str
    arm: str
    left_out: str | None
    downstream: Estimate
    keeps_more: Reading | None
    learns_more: Estimate


def without_each(sets: Sets, bootstrap: Bootstrap) -> dict[str | None, tuple[Sets, Bootstrap]]:
    """All tasks, and all but one of them.

    Args:
        sets: Which sets count.
        bootstrap: Of all of them.

    Returns:
        By the task that is left out, and None, what counts then; None alone if there is but one task.
    """
    several = sets.downstream if len(sets.downstream) > 1 else ()
    rest = {name: tuple(other for other in sets.downstream if other != name) for name in several}
    return {None: (sets, bootstrap)} | {
        name: (dataclasses.replace(sets, downstream=others), bootstrap.without(name)) for name, others in rest.items()
    }


def compare(
    points: Sequence[Point], seeds: tuple[int, ...], counted: Mapping[str | None, tuple[Sets, Bootstrap]]
) -> list[Pair]:
    """Compares `PAIRS`, tuned anew for each of the tasks that is left out.

    Args:
        points: Of all arms, each with all seeds.
        seeds: Over which means are taken.
        counted: What `without_each` returned.

    Returns:
        The pairs of which both have points, all with all tasks first.
    """
    return [
        pair
        for left_out, (sets, bootstrap) in counted.items()
        for pair in _pairs(left_out, points, selection.tune(points, seeds, sets), seeds, bootstrap)
    ]


def _pairs(
    left_out: str | None,
    points: Sequence[Point],
    tuned: Mapping[str, selection.Tuned],
    seeds: tuple[int, ...],
    bootstrap: Bootstrap,
) -> list[Pair]:
    chosen = {arm: bootstrap.point(one.point, seeds) for arm, one in tuned.items() if one.point}
    lines = {arm: [bootstrap.point(point, seeds) for point in points if point.arm == arm] for arm in chosen}
    return [_pair(than, arm, left_out, chosen, lines) for than, arm in PAIRS if than in chosen and arm in chosen]


def _pair(
    than: str, arm: str, left_out: str | None, chosen: Mapping[str, Figures], lines: Mapping[str, Sequence[Figures]]
) -> Pair:
    ours_B, other_B = chosen[arm].downstream, chosen[than].downstream
    level_B = np.minimum(ours_B, other_B)  # in each draw, so that both get there in each
    ours, other = (read_at(*stacked(lines[one]), level_B) for one in (arm, than))
    keeps_more = unbounded(difference(ours, other))
    return Pair(than, arm, left_out, estimate(level_B), keeps_more, estimate(ours_B - other_B))
