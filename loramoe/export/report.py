"""What an export is and how far it is from its mixture: the content of `export_report.json`, and tables of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from loramoe.export.distance import BASE, EXPORT, SIDES, Group

REPORT: Final = "export_report.json"


@dataclass(frozen=True)
class LinearReport:
    """One adapted linear.

    Attributes:
        gates: Mean gate of each expert, E floats.
        spread: Coefficient of variation of the gates over the calibration tokens (see `GateStatistics`).
        relative_error: Of what its experts add, given the mixture's input (see `LinearErrors`).
    """

    gates: list[float]
    spread: float
    relative_error: float


@dataclass(frozen=True)
class ExportReport:
    """An export, and how far it is from the mixture.

    Attributes:
        loramoe: Version of this library.
        source: What the adapter is called; no path.
        base_model: Name of its base model on the hub, or that of its folder; no path.
        base_on_hub: Whether it is a name on the hub.
        experts: Number of experts E.
        rank: Rank of the plain LoRA, E·R.
        calibration_tokens: Tokens that the gates were averaged over.
        held_out: Whether the distance was measured on rows of their own; else on the calibration rows.
        lost: KL(mixture ‖ export) / KL(mixture ‖ base) over the answers; None where the mixture is the base model.
        groups: The distance over the answers, over those of each task type, and over all tokens.
        recall: Share of the facts that "base", "mixture" and "export" know; empty if it was not measured.
        linears: Each adapted linear, by its name in the base model.
    """

    loramoe: str
    source: str
    base_model: str | None
    base_on_hub: bool
    experts: int
    rank: int
    calibration_tokens: int
    held_out: bool
    lost: float | None
    groups: dict[str, Group]
    recall: dict[str, float]
    linears: dict[str, LinearReport]

    def __str__(self) -> str:
        return "\n\n".join([divergence_table(self), answer_table(self), linear_table(self, most=5)])


def divergence_table(report: ExportReport) -> str:
    """KL and agreement as a table in Markdown, the export beside the base model."""
    head = ["over", "rows", "tokens", *(f"{name}, {side}" for side in (EXPORT, BASE) for name in _DIVERGENCES)]
    rows = []
    for name, group in report.groups.items():
        sides = [group.divergence[side] for side in (EXPORT, BASE)]
        values = [_plain(getattr(side, field)) for side in sides for field in _DIVERGENCES.values()]
        rows.append([name, f"{group.rows:,}", f"{group.tokens:,}", *values])
    return _table(head, rows)


_DIVERGENCES = {"KL": "mean", "p95": "p95", "max": "max", "top-1 agreement": "agreement"}


def answer_table(report: ExportReport) -> str:
    """Accuracy, perplexity and recall as a table in Markdown, side by side."""
    head = ["", "rows", *SIDES]
    rows = []
    for name, group in report.groups.items():
        for measure in ("accuracy", "token_accuracy", "perplexity") if group.answers else ():
            values = [_plain(getattr(group.answers[side], measure)) for side in SIDES]
            rows.append([f"{measure.replace('_', ' ')}, {name}", f"{group.rows:,}", *values])
    if report.recall:
        rows.append(["recall of known facts", "", *(_plain(report.recall[side]) for side in SIDES)])
    return _table(head, rows)


def linear_table(report: ExportReport, most: int | None = None) -> str:
    """The linears as a table in Markdown, those first that lose most; of `most` linears, if given."""
    linears = sorted(report.linears.items(), key=lambda item: -item[1].relative_error)[:most]
    rows = [[f"`{name}`", _plain(each.spread), _plain(each.relative_error)] for name, each in linears]
    return _table(["linear", "spread of the gates", "relative error"], rows)


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
