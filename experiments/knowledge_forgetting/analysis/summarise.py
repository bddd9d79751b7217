"""From the runs of a scale to all that is told of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from experiments.knowledge_forgetting.analysis import one_task, provenance, selection, studies
from experiments.knowledge_forgetting.analysis.bootstrap import DRAWS, Bootstrap, Figures, estimate
from experiments.knowledge_forgetting.analysis.learnt import without_unlearnt
from experiments.knowledge_forgetting.analysis.matched import match, match_alike, read_at, stacked
from experiments.knowledge_forgetting.analysis.recipes import Recipes, rank_recipes
from experiments.knowledge_forgetting.analysis.results import Results, Run
from experiments.knowledge_forgetting.analysis.studies import Ablation, Point
from experiments.knowledge_forgetting.analysis.summary import (
    GOAL_KEPT,
    AblationSummary,
    Goal,
    Measured,
    PointSummary,
    Setting,
    Summary,
    Treated,
    TunedSummary,
)
from experiments.knowledge_forgetting.arms import ARMS
from experiments.knowledge_forgetting.scale import Split
from loramoe.evaluation.statistics import Array


def summarise(results: Results, draws: int = DRAWS) -> Summary:
    """Sums up the runs of a scale.

    Args:
        results: The runs.
        draws: Of the bootstrap.

    Returns:
        All that is told of them.
    """
    return _Summariser(without_unlearnt(results), draws).summary()


class _Summariser:
    def __init__(self, results: Results, draws: int) -> None:
        self.results, self.draws = results, draws
        self.bootstrap = Bootstrap(results, draws)
        self.points = studies.points_of(results.trained)
        self.frontier = studies.frontier(self.points)
        self.compared, self.seeds = studies.complete(self.frontier)
        self.tuned = selection.tune(self.compared, self.seeds, results.sets)
        self.counted = one_task.without_each(results.sets, self.bootstrap)

    def summary(self) -> Summary:
        sets, lines = self.results.sets, self._lines(self.compared, self.seeds)
        tuned = self._tuned_figures(self.tuned, self.seeds)
        return Summary(
            sets=sets,
            draws=self.draws,
            rows=studies.main_rows(self.points),
            seeds=self.seeds,
            base=self._base(),
            frontier=[self._point(point, self.seeds if point in self.compared else None) for point in self.frontier],
            compared=[(point.arm, point.learning_rate) for point in self.compared],
            tuned=self._told(self.tuned, self.seeds),
            tuned_for_knowledge=self._told(selection.tune_for_knowledge(self.compared, self.seeds, sets), self.seeds),
            levels=match(lines, tuned),
            alike=match_alike(lines),
            goal=_goals(lines, tuned),
            pairs=one_task.compare(self.compared, self.seeds, self.counted),
            treated=[self._treated(group) for group in studies.treated_alike(self.points, self.seeds)],
            rows_study=[self._line(line) for line in studies.rows_study(self.points)],
            ablations=[self._ablation(ablation) for ablation in studies.ablations(self.points)],
            recipes=self._recipes(),
            beyond=[self._point(point) for point in studies.points_of(self.results.beyond)],
            missing=studies.missing(self.frontier, self.compared),
            provenance=provenance.of([self.results.base, *self.results.trained, *self.results.beyond]),
        )

    def _lines(self, points: Sequence[Point], seeds: tuple[int, ...]) -> dict[str, list[Figures]]:
        lines: dict[str, list[Figures]] = {}
        for point in points:
            lines.setdefault(point.arm, []).append(self.bootstrap.point(point, seeds))
        return lines

    def _tuned_figures(self, tuned: Mapping[str, selection.Tuned], seeds: tuple[int, ...]) -> dict[str, Figures]:
        return {arm: self.bootstrap.point(one.point, seeds) for arm, one in tuned.items() if one.point}

    def _told(self, tuned: Mapping[str, selection.Tuned], seeds: tuple[int, ...]) -> list[TunedSummary]:
        return [
            TunedSummary(one.arm, one.at_edge, self._point(one.point, seeds) if one.point else None)
            for one in tuned.values()
        ]

    def _treated(self, group: Sequence[Point]) -> Treated:
        compared, seeds = studies.complete(group)
        full = {arm: one for arm, one in self.tuned.items() if arm == "full"}
        as_it_is = self._tuned_figures(full, seeds)  # of the group's seeds, so that it is paired with them
        tuned = selection.tune(compared, seeds, self.results.sets)
        lines, figures = self._lines(compared, seeds), self._tuned_figures(tuned, seeds)
        return Treated(
            changes=dict(group[0].changes),
            seeds=seeds,
            points=[self._point(point, seeds) for point in compared],
            tuned=self._told(tuned, seeds),
            levels=match(lines, figures, as_it_is.get("full")),
            goal=_goals(lines, as_it_is),
            goal_alike=_goals(lines, figures),
            pairs=one_task.compare(compared, seeds, self.counted),
        )

    def _base(self) -> PointSummary:
        base = self.results.base
        return self._point(Point(base.arm, base.learning_rate, base.rows, base.changes, {base.seed: base}))

    def _point(self, point: Point, seeds: tuple[int, ...] | None = None) -> PointSummary:
        runs = {seed: point.runs[seed] for seed in seeds or point.seeds}
        figures, sets = self.bootstrap.point(point, tuple(runs)), self.results.sets
        knowledge = {seed: run.mean("test", sets.knowledge) for seed, run in runs.items()}
        return PointSummary(
            arm=point.arm,
            learning_rate=point.learning_rate,
            rows=point.rows,
            changes=dict(point.changes),
            trainable_parameters=next(iter(runs.values())).trainable_parameters,
            knowledge=_measured(figures.knowledge, knowledge),
            kept=_measured(figures.kept, {seed: self.results.kept(run) for seed, run in runs.items()}),
            downstream=_measured(figures.downstream, {s: run.mean("test", sets.downstream) for s, run in runs.items()}),
            by_set={name: _mean([run.accuracy["test"][name] for run in runs.values()]) for name in sets.names},
            variation=_variation(runs),
            share=_share(list(runs.values())),
        )

    def _line(self, line: Sequence[Point]) -> list[PointSummary]:
        shared = tuple(sorted(set.intersection(*(set(point.runs) for point in line))))
        return [self._point(point, shared or None) for point in line]

    def _ablation(self, ablation: Ablation) -> AblationSummary:
        settings = [Setting(point.changes[ablation.key], False, self._point(point)) for point in ablation.points]
        if ablation.own:
            own = dataclasses.asdict(ARMS[ablation.arm].recipe).get(ablation.key) if ablation.arm in ARMS else None
            seeds = {seed for point in ablation.points for seed in point.runs} & set(ablation.own.runs)
            settings.append(Setting(own, True, self._point(ablation.own, tuple(sorted(seeds)) or None)))
        settings.sort(key=lambda setting: studies.order(setting.value))
        return AblationSummary(ablation.arm, ablation.key, ablation.learning_rate, settings)

    def _recipes(self) -> list[Recipes]:
        levels = selection.recipe_levels(self.tuned, self.seeds, self.results.sets)
        if not levels:
            return []
        bootstraps: dict[Split, Bootstrap] = {
            "validation": Bootstrap(self.results, self.draws, "validation"),
            "test": self.bootstrap,
        }
        points = [point for point in self.points if point.rows == levels[0].rows]
        levels += selection.level_of_changed_arms(points, self.tuned, self.seeds, self.results.sets)
        return [rank_recipes(points, level, self.seeds, bootstraps) for level in levels]


def _measured(values_B: Array, by_seed: dict[int, float]) -> Measured:
    return Measured(**dataclasses.asdict(estimate(values_B)), by_seed=by_seed)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variation(runs: dict[int, Run]) -> Measured | None:
    """Routing is not asked item by item, so its interval is the seeds' range."""
    by_seed = {seed: run.routing["coefficient_of_variation"] for seed, run in runs.items() if run.routing}
    values = list(by_seed.values())
    return Measured(_mean(values), min(values), max(values), by_seed) if values else None


def _share(runs: Sequence[Run]) -> dict[str, list[float]] | None:
    """Of each type of rows, over the runs whose last steps had such rows: of few steps, some have none."""
    shares = [run.routing["share"] for run in runs if run.routing]
    if not shares:
        return None
    kinds = sorted({kind for share in shares for kind in share})
    return {
        kind: [_mean(group) for group in zip(*(share[kind] for share in shares if kind in share), strict=True)]
        for kind in kinds
    }


def _goals(lines: Mapping[str, Sequence[Figures]], tuned: Mapping[str, Figures]) -> list[Goal]:
    if "full" not in tuned:
        return []
    return [_goal(arm, line, tuned["full"].downstream) for arm, line in lines.items()]


def _goal(arm: str, line: Sequence[Figures], full_B: Array) -> Goal:
    downstream_BP, kept_BP = stacked(line)
    kept_B, kept = read_at(downstream_BP, kept_BP, full_B)
    downstream_B, downstream = read_at(kept_BP, downstream_BP, full_B * 0 + GOAL_KEPT)
    behind = dataclasses.replace(downstream, value=estimate(downstream_B - full_B)) if downstream else None
    reached_B = kept_B >= GOAL_KEPT  # not where there is no figure
    return Goal(arm, kept, downstream, behind, bool(reached_B[0]), float(reached_B[1:].mean()))
