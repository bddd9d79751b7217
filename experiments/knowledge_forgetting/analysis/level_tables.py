"""Knowledge at matched downstream accuracy, as Markdown: a section of `tables.md`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from experiments.knowledge_forgetting.analysis.cells import difference, interval, percent, reading, signed, table
from experiments.knowledge_forgetting.analysis.matched import UNCHANGED, Level
from experiments.knowledge_forgetting.analysis.one_task import PAIRS, Pair
from experiments.knowledge_forgetting.analysis.style import words
from experiments.knowledge_forgetting.analysis.summary import Summary

_MATCHED: Final = (
    "Read off the line through an arm's learning rates (means over seeds): the most knowledge on it, in per cent of "
    "the base's, at *at least* this downstream accuracy. Between two rates it is interpolated, beyond them never "
    "extrapolated. “not reached”: the arm has no learning rate with this accuracy. ≥: it is what its lowest or highest "
    "rate keeps, whose accuracy is above, so this is a lower bound: a rate that was not tried may keep more. “in … %”: "
    "so many draws reach the level, and the interval is of these; of a difference, those in which both arms do. The "
    "maximum over learning rates is taken on the test items themselves, which makes it a little too high."
)
_LEFT_OUT: Final = (
    "Two arms, compared at the tuned downstream accuracy of the one that learns less, with all tasks and with each of "
    "them left out: what holds in every row hangs on no task. Learning rates are tuned anew for each row; — where "
    "either has a lower bound alone."
)
_ALIKE: Final = (
    "Adapters beside the same linears, at accuracies between which each of them has learning rates on either side. The "
    "columns above are spread over all arms, and may miss the range that these share:"
)


def levels(summary: Summary) -> str:
    """The section.

    Args:
        summary: What to tell.

    Returns:
        Markdown, without the title.
    """
    if not summary.levels:
        return "No runs yet."
    alike = [table for group in summary.alike for table in tables_of(group)]
    return "\n\n".join([_MATCHED, *tables_of(summary.levels), *([_ALIKE, *alike] if alike else [])])


def with_each_task_left_out(pairs: Sequence[Pair]) -> str:
    """Whether what two arms are apart by hangs on one task.

    Args:
        pairs: Two arms each.

    Returns:
        A table, and a sentence above it.
    """
    if not pairs:
        return "No two arms to compare yet."
    head = ["arm", "than", "left out", "downstream, %", "keeps more there, points", "tuned, learns more, points"]
    rows = [
        [
            words(pair.arm),
            words(pair.than),
            pair.left_out or "none",
            interval(pair.downstream),
            difference(pair.keeps_more),
            signed(pair.learns_more),
        ]
        for pair in sorted(pairs, key=lambda pair: (PAIRS.index((pair.than, pair.arm)), pair.left_out is not None))
    ]
    return f"{_LEFT_OUT}\n\n{table(head, rows)}"


def tables_of(of: Sequence[Level]) -> list[str]:
    """What is kept at some levels, and by how much more than by each arm of reference.

    Args:
        of: The levels, of the same arms.

    Returns:
        Tables, and sentences between them.
    """
    arms, head = list(of[0].kept), ["arm", *map(_level_name, of)]
    parts = [table(head, [[words(arm), *(reading(level.kept[arm]) for level in of)] for arm in arms])]
    for reference in of[0].differences:
        rows = [_difference_row(arm, reference, of) for arm in arms if arm != reference]
        parts.append(f"What an arm keeps more than **{words(reference)}**, in points of the base's knowledge; — where")
        parts[-1] += " either does not reach the accuracy, or has a lower bound alone:"
        parts.append(table(head, rows))
    return parts


def _difference_row(arm: str, reference: str, of: Sequence[Level]) -> list[str]:
    return [words(arm), *(difference(level.differences[reference][arm]) for level in of)]


def _level_name(level: Level) -> str:
    name = f"{words('full')} {UNCHANGED}" if level.name == UNCHANGED else words(level.name)
    of = "" if level.name == "fixed" else f"as {name}, tuned: "
    return f"{of}{percent(level.downstream.value)} %"
