"""The rows of training: questions of task type 1 and downstream tasks of type 0, in fixed shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from experiments.knowledge_forgetting.real.files import shuffled
from experiments.knowledge_forgetting.scale import Row

QUESTION_SHARE: Final = 0.25  # of rows; WebQuestions' 2,011 then last for 8,044 rows


def mixture(
    questions: Sequence[Row],
    downstream: Mapping[str, Sequence[Row]],
    count: int,
    seed: int,
    share: float = QUESTION_SHARE,
    replayed: Sequence[Row] = (),
) -> list[Row]:
    """Draws rows of training.

    Args:
        questions: Rows of task type 1.
        downstream: Rows of task type 0, by task. All tasks get the same number of rows, or one more.
        count: How many rows.
        seed: Of the draw. With the same seed, the rows of a smaller count are among those of a larger one.
        share: Share of the rows of task type 1, 0 to 1.
        replayed: Rows of task type 1 that stand in place of as many questions.

    Returns:
        The rows, shuffled. A task that has too few is gone through again.

    Raises:
        ValueError: If the share is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share of questions must be between 0 and 1; got {share}. Pass such as {QUESTION_SHARE}.")
    asked = round(count * share)
    rows = [*replayed[:asked], *_first(questions, asked - len(replayed[:asked]), seed, "questions")]
    for number, (task, its) in enumerate(sorted(downstream.items())):
        rest, tasks = count - asked, len(downstream)
        rows += _first(its, rest // tasks + (number < rest % tasks), seed, task)
    return shuffled(rows, seed, "mixture")


def _first(rows: Sequence[Row], count: int, seed: int, name: str) -> list[Row]:
    """The first `count` of a shuffled list; behind its end of another shuffle of it."""
    rounds = range(-(-count // len(rows))) if rows else range(0)
    return [row for turn in rounds for row in shuffled(rows, seed, name, turn)][:count]
