"""What the tasks of this folder ask of a row: which rows have a choice of answers, and how an answer is judged."""

from __future__ import annotations

from typing import Any

CHOICES = (["yes", "no"], ["positive", "negative"], ["weather", "music", "food", "travel", "sport"])


def with_choices(rows: Any) -> Any:
    """The rows that are answered with a label, each with all labels of its kind.

    Args:
        rows: A `datasets.Dataset` of rows as in data/README.md.

    Returns:
        The inference, sentiment and topic rows with a column "choices".
    """
    labels = {label: kind for kind in CHOICES for label in kind}
    labelled = rows.filter(lambda row: row["output"] in labels)
    return labelled.map(lambda row: {"choices": labels[row["output"]]})
