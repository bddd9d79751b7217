"""Figures of all tasks and models in one Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from loramoe.evaluation.statistics import Line

_LEGEND = (
    "In brackets: 95 % intervals (bootstrap); of an adapter that of the difference before it, to the base model on the "
    "same questions. Accuracy, exact match, F1 and recall: shares of 1. Log-likelihood: of an answer, in nats, on "
    "average. Perplexity: of a token of the answers."
)


def markdown(lines: Sequence[Line], models: Sequence[str]) -> str:
    """Draws the table.

    Args:
        lines: Its lines.
        models: Names of the models, the first of them the one that the others are compared with.

    Returns:
        The table, with a legend below it; columns are padded, so that it can be read in a terminal too.
    """
    heads = [["task", "type", "questions", "metric", *models]]
    rows = [[*_what(line), *(_cell(line, model) for model in models)] for line in lines]
    widths = [max(map(len, column)) for column in zip(*heads, *rows, strict=True)]
    ruler = [["-" * width for width in widths]]
    drawn = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in heads + ruler + rows
    ]
    return "\n".join(f"| {row} |" for row in drawn) + f"\n\n{_LEGEND}\n"


def _what(line: Line) -> list[str]:
    left_out = f" ({line.too_long} too long)" if line.too_long and line.task_type is None else ""
    kind = "all" if line.task_type is None else str(line.task_type)
    return [line.task.replace("|", "\\|"), kind, f"{line.questions:,}{left_out}", line.metric]


def _cell(line: Line, model: str) -> str:
    value, difference = line.values[model], line.differences.get(model)
    if difference is None:
        return f"{value.value:.4g} [{value.low:.3g}, {value.high:.3g}]"
    return f"{value.value:.4g}, {difference.value:+.3g} [{difference.low:+.3g}, {difference.high:+.3g}]"
