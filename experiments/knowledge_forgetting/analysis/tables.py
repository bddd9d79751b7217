"""The summary as Markdown: `tables.md`. Accuracies are in per cent; brackets are 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from experiments.knowledge_forgetting.analysis import level_tables, recipe_tables, selection
from experiments.knowledge_forgetting.analysis.cells import (
    difference,
    percent,
    point_cells,
    reading,
    table,
    three_intervals,
    three_spreads,
)
from experiments.knowledge_forgetting.analysis.style import words
from experiments.knowledge_forgetting.analysis.summary import (
    GOAL_KEPT,
    Goal,
    PointSummary,
    Summary,
    Treated,
    TunedSummary,
)

_INTERVALS: Final = (
    "Brackets are 95 % percentile intervals of a bootstrap with {draws:,} draws over the test items and the seeds, the "
    "same items and seeds for every arm, so that differences are paired. Seeds are few: where their spread is larger "
    "than that of the items, an interval of three seeds is hardly wider than their range, which covers the truth about "
    "three times in four. The choice of the learning rate is not drawn again. Facts are drawn one by one, though "
    "several are about the same subject, which makes intervals too narrow; and there was one world and one base model, "
    "so that no interval tells how others would fare."
)
_EDGE: Final = r"\* The lowest or highest rate that was tried: a better one may lie outside."
_EVERY: Final = "downstream, all sets"


def tables(summary: Summary) -> str:
    """The whole page.

    Args:
        summary: What to tell.

    Returns:
        Markdown.
    """
    sections = {
        "What the comparison of the arms still lacks": _missing(summary),
        "Every arm, every learning rate": _frontier(summary),
        "At the tuned learning rate": _tuned(summary),
        "Knowledge at matched downstream accuracy": level_tables.levels(summary),
        f"The goal: {100 * GOAL_KEPT:.0f} % kept, at full fine-tuning's downstream accuracy": _goal(summary.goal),
        "With each task left out": level_tables.with_each_task_left_out(summary.pairs),
        "Arms in which the same was changed": _treated(summary),
        "Knowledge against the number of training rows": _rows_study(summary),
        "Ablations": recipe_tables.ablations(summary),
        "Recipes, ranked on validation": recipe_tables.ranking(summary),
        "Recipes, every learning rate": recipe_tables.at_rates(summary),
        "Imbalance of the experts": _routing(summary),
    }
    if summary.beyond:
        sections["Rates beyond the range (one seed)"] = _beyond(summary)
    head = f"Made from the result files of this folder; do not edit.\n\n{_head(summary)}"
    return "\n\n".join([head, *(f"## {title}\n\n{text}" for title, text in sections.items())]) + "\n"


def _head(summary: Summary) -> str:
    sets, base = summary.sets, summary.base
    return (
        f"{summary.provenance.line()}\n\n"
        f"Knowledge is the mean accuracy over {', '.join(sets.knowledge)}; "
        f"downstream over {', '.join(sets.downstream)}{_uncounted(summary)}. "
        f"The base model has {percent(base.knowledge.value)} % of the knowledge and "
        f"{percent(base.downstream.value)} % downstream. {_chance(summary)} "
        f"{_INTERVALS.format(draws=summary.draws)}"
    )


def _uncounted(summary: Summary) -> str:
    if not summary.sets.uncounted:
        return ""
    return (
        f"; not over {', '.join(summary.sets.uncounted)}, in which no arm is better on validation than a guess on the "
        f"test items (with that: the column “{_EVERY}”)"
    )


def _chance(summary: Summary) -> str:
    sets = summary.sets
    known = [f"{percent(sets.chance[name])} % of {name}" for name in sets.names if sets.chance[name]]
    guess = (
        f"A guess, or the commonest answer, is right in {', '.join(known)}; in the others never"
        if known
        else ("A guess is never right")
    )
    kept = "Knowledge kept is corrected for chance: of each set (accuracy − chance) / (base − chance), then the mean."
    return f"{kept} {guess}. Downstream accuracy is not corrected."


def _missing(summary: Summary) -> str:
    return "\n".join(f"- {sentence}" for sentence in summary.missing) or "Nothing."


def _frontier(summary: Summary) -> str:
    if not summary.frontier:
        return "No runs yet."
    text = f"{summary.rows:,} training rows, test split; mean ± standard deviation over seeds, sets as means."
    return f"{text}\n\n{_by_set([summary.base, *summary.frontier], summary)}"


def _by_set(points: Sequence[PointSummary], summary: Summary) -> str:
    head = ["arm", "learning rate", "parameters", "seeds", "knowledge, %", "kept, % of base", "downstream, %"]
    every = [_EVERY] if summary.sets.uncounted else []
    return table([*head, *summary.sets.names, *every], [_by_set_row(point, summary) for point in points])


def _by_set_row(point: PointSummary, summary: Summary) -> list[str]:
    sets = summary.sets
    every = [point.by_set[name] for name in (*sets.downstream, *sets.uncounted)]
    by_set = [point.by_set[name] for name in sets.names] + ([sum(every) / len(every)] if sets.uncounted else [])
    return [*point_cells(point), *three_spreads(point), *map(percent, by_set)]


def _tuned(summary: Summary) -> str:
    if not summary.tuned:
        return "No runs yet."
    text = f"Seeds {', '.join(map(str, summary.seeds))}, test split; chosen by: "
    parts = [f"{text}{selection.BY_DOWNSTREAM}.\n\n{_tuned_table(summary.tuned)}"]
    if summary.tuned_for_knowledge:
        parts.append(f"Chosen by: {selection.BY_KNOWLEDGE}.\n\n{_tuned_table(summary.tuned_for_knowledge)}")
    return "\n\n".join([*parts, _EDGE])


def _tuned_table(tuned: Sequence[TunedSummary]) -> str:
    rows = []
    for one in tuned:
        if one.point is None:
            rows.append([words(one.arm), "none fits", "", "", ""])
        else:
            figures = three_intervals(one.point)
            edge = r" \*" if one.at_edge else ""
            rows.append([words(one.arm), f"{one.point.learning_rate:g}{edge}", *figures])
    return table(["arm", "learning rate", "knowledge, %", "kept, % of base", "downstream, %"], rows)


def _goal(goals: Sequence[Goal]) -> str:
    if not goals:
        return "No runs of full fine-tuning yet."
    reached = [f"{words(goal.arm)} (in {100 * goal.reached_in:.0f} % of the draws)" for goal in goals if goal.reached]
    head = [
        "arm",
        "kept at its downstream accuracy, %",
        f"downstream with {100 * GOAL_KEPT:.0f} % kept, %",
        "less full's, points",
    ]
    verdict = f"Reached by: {', '.join(reached)}." if reached else "No arm reaches it."
    text = f"{verdict} That is by what was observed; the last column says in how many draws it is reached."
    return f"{text}\n\n{table([*head, 'reached', 'in draws, %'], map(_goal_row, goals))}"


def _goal_row(goal: Goal) -> list[str]:
    behind = difference(goal.behind) if goal.behind else "never keeps as much"
    downstream = reading(goal.downstream) if goal.downstream else "never keeps as much"
    return [
        words(goal.arm),
        reading(goal.kept),
        downstream,
        behind,
        "yes" if goal.reached else "no",
        percent(goal.reached_in),
    ]


def _treated(summary: Summary) -> str:
    if not summary.treated:
        return "Nothing was changed in full fine-tuning and another arm yet."
    text = (
        "Whatever a change wins for one arm, it may win for others. Here they are compared as the arms are above, over "
        f"the learning rates that have all seeds. {_EDGE}"
    )
    return "\n\n".join([text, *(_treated_alike(group, summary) for group in summary.treated)])


def _treated_alike(group: Treated, summary: Summary) -> str:
    parts = [
        f"### With {recipe_tables.changes_text(group.changes)}",
        _by_set(group.points, summary),
        f"Seeds {', '.join(map(str, group.seeds))}, test split; chosen by: {selection.BY_DOWNSTREAM}.",
        _tuned_table(group.tuned),
        *(level_tables.tables_of(group.levels) if group.levels else []),
        "The goal, by full fine-tuning as it is:",
        _goal(group.goal),
        "By full fine-tuning with the same change:",
        _goal(group.goal_alike),
        level_tables.with_each_task_left_out(group.pairs),
    ]
    return "\n\n".join(parts)


def _rows_study(summary: Summary) -> str:
    if not summary.rows_study:
        return "No arm has runs of several numbers of rows yet."
    head = ["arm", "learning rate", "rows", "seeds", "knowledge, %", "kept, % of base", "downstream, %"]
    rows = [
        [words(p.arm), f"{p.learning_rate:g}", f"{p.rows:,}", str(len(p.kept.by_seed)), *three_intervals(p)]
        for line in summary.rows_study
        for p in line
    ]
    return table(head, rows)


def _beyond(summary: Summary) -> str:
    head = ["arm", "learning rate", "parameters", "seeds", "knowledge, %", "kept, % of base", "downstream, %"]
    text = "Why no higher rates were tried: these are compared with nothing."
    return f"{text}\n\n{table(head, [[*point_cells(point), *three_spreads(point)] for point in summary.beyond])}"


def _routing(summary: Summary) -> str:
    routed = [point for point in summary.frontier if point.variation and point.share]
    if not routed:
        return "No runs with experts yet."
    text = "Mean over seeds; in brackets the seeds' range. Shares are each group of experts' of the gate weight."
    kinds = sorted({kind for point in routed for kind in point.share or {}})
    head = ["arm", "learning rate", "coefficient of variation", *(f"rows of type {kind}" for kind in kinds)]
    return f"{text}\n\n{table(head, [_routing_row(point, kinds) for point in routed])}"


def _routing_row(point: PointSummary, kinds: Sequence[str]) -> list[str]:
    variation, share = point.variation, point.share or {}
    spread = f"{variation.value:.2f} ({variation.low:.2f} to {variation.high:.2f})" if variation else ""
    shares = [" / ".join(f"{value:.2f}" for value in share.get(kind, [])) for kind in kinds]
    return [words(point.arm), f"{point.learning_rate:g}", spread, *shares]
