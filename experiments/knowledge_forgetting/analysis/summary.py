"""Every number that tables, figures and pages tell, with its interval, in one object: `summary.json`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Final

from experiments.knowledge_forgetting.analysis.matched import Level, Reading
from experiments.knowledge_forgetting.analysis.one_task import Pair
from experiments.knowledge_forgetting.analysis.provenance import Provenance
from experiments.knowledge_forgetting.analysis.recipes import Recipes
from experiments.knowledge_forgetting.analysis.results import Sets

GOAL_KEPT: Final = 0.99
_DIGITS: Final = 6


@dataclass(frozen=True)
class Measured:
    """A figure of a point: mean over its seeds, 95 % interval, and each seed's own."""

    value: float
    low: float
    high: float
    by_seed: dict[int, float]


@dataclass(frozen=True)
class PointSummary:
    """A point of the grid.

    Attributes:
        arm: What was trained.
        learning_rate: Peak of the schedule.
        rows: How many rows it was trained on.
        changes: What an ablation set otherwise.
        trainable_parameters: How many.
        knowledge: Accuracy on knowledge, test split.
        kept: That as a share of the base's, both above chance.
        downstream: Accuracy on downstream tasks, test split.
        by_set: Mean accuracy over seeds on each set of the test split.
        variation: Coefficient of variation of the experts' gate weight, mean over seeds; None without experts.
        share: For rows of each task type, the share of each group of experts; None without experts.
    """

    arm: str
    learning_rate: float
    rows: int
    changes: dict[str, Any]
    trainable_parameters: int
    knowledge: Measured
    kept: Measured
    downstream: Measured
    by_set: dict[str, float]
    variation: Measured | None
    share: dict[str, list[float]] | None


@dataclass(frozen=True)
class TunedSummary:
    """An arm at the learning rate that a rule chose; `point` is None if no rate of the arm fits the rule."""

    arm: str
    at_edge: bool
    point: PointSummary | None


@dataclass(frozen=True)
class Goal:
    """How near an arm came to: 99 % of the knowledge kept, at a downstream accuracy not below full fine-tuning's.

    Attributes:
        arm: The arm.
        kept: What it keeps at the downstream accuracy of tuned full fine-tuning; None if it does not get so far.
        downstream: The most downstream accuracy with 99 % of the knowledge kept; None if it never keeps as much.
        behind: That less the downstream accuracy of tuned full fine-tuning.
        reached: Whether the goal is, by what was observed.
        reached_in: Share of the draws in which it is.
    """

    arm: str
    kept: Reading | None
    downstream: Reading | None
    behind: Reading | None
    reached: bool
    reached_in: float


@dataclass(frozen=True)
class Treated:
    """Arms in which the same was changed, compared as the arms themselves are.

    Attributes:
        changes: What was changed.
        seeds: Those over which they are compared.
        points: Of theirs all that have these seeds.
        tuned: By the first rule of `selection`.
        levels: Knowledge at matched downstream accuracy.
        goal: How near each arm came to the goal, by full fine-tuning as it is; nothing if that has no runs.
        goal_alike: The same, by full fine-tuning with the same change.
        pairs: Two arms each, with all tasks and with each left out.
    """

    changes: dict[str, Any]
    seeds: tuple[int, ...]
    points: list[PointSummary]
    tuned: list[TunedSummary]
    levels: list[Level]
    goal: list[Goal]
    goal_alike: list[Goal]
    pairs: list[Pair]


@dataclass(frozen=True)
class Setting:
    """A point of an ablation.

    Attributes:
        value: Of the setting; None if it is the arm's own and not known.
        is_own: Whether it is what the arm has without a change.
        point: Its figures.
    """

    value: Any
    is_own: bool
    point: PointSummary


@dataclass(frozen=True)
class AblationSummary:
    """Points of one arm at one learning rate that differ in one setting, by its value."""

    arm: str
    key: str
    learning_rate: float
    settings: list[Setting]


@dataclass(frozen=True)
class Summary:
    """All that is told of a scale.

    Attributes:
        sets: Which sets count as what.
        draws: Of the bootstrap.
        rows: The main number of rows.
        seeds: Those over which arms are compared: what every learning rate of `compared` has.
        base: The base model.
        frontier: Every arm and learning rate at the main number of rows; those compared with the common seeds alone, as
            others may have served to choose a recipe.
        compared: Which of them, as (arm, learning rate), were tuned and matched.
        tuned: By the first rule of `selection`.
        tuned_for_knowledge: By the second.
        levels: Knowledge at matched downstream accuracy.
        alike: The same for each group of adapters beside the same linears, at accuracies that all of them reach.
        goal: How near each arm came to the goal.
        pairs: Two arms each, with all tasks and with each left out.
        treated: Full fine-tuning and other arms in which the same was changed.
        rows_study: For each arm and learning rate, its points by number of rows.
        ablations: Every setting that was changed alone, at each learning rate.
        recipes: Every arm and what was changed in it, over the learning rates; at each level of downstream accuracy.
        beyond: Points at learning rates beyond those that arms are compared at.
        missing: What the grid does not hold yet, in words.
        provenance: Hardware, versions, commits, dates, and number of runs.
    """

    sets: Sets
    draws: int
    rows: int | None
    seeds: tuple[int, ...]
    base: PointSummary
    frontier: list[PointSummary]
    compared: list[tuple[str, float]]
    tuned: list[TunedSummary]
    tuned_for_knowledge: list[TunedSummary]
    levels: list[Level]
    alike: list[list[Level]]
    goal: list[Goal]
    pairs: list[Pair]
    treated: list[Treated]
    rows_study: list[list[PointSummary]]
    ablations: list[AblationSummary]
    recipes: list[Recipes]
    beyond: list[PointSummary]
    missing: list[str]
    provenance: Provenance

    def json(self) -> str:
        """The content of `summary.json`."""
        return json.dumps(_rounded(dataclasses.asdict(self)), indent=1, ensure_ascii=False) + "\n"


def _rounded(value: Any) -> Any:
    """Rounds floats: the last digits differ between machines, and mean nothing."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list | tuple) else value
