"""The summary as figures. Each PNG carries a digest of the summary, so that a stale one is found whatever drew it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from experiments.knowledge_forgetting.analysis import frontier_figures, study_figures
from experiments.knowledge_forgetting.analysis.drawing import sign
from experiments.knowledge_forgetting.analysis.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(summary: Summary) -> dict[str, Callable[[], Figure]]:
    """The figures of what has been run.

    Args:
        summary: What to show.

    Returns:
        By name of the file, what draws each.
    """
    known: dict[str, Callable[[], Figure]] = {}
    if summary.frontier:
        known["frontier.png"] = partial(frontier_figures.frontier, summary)
    if summary.levels:
        known["matched.png"] = partial(frontier_figures.matched, summary)
    if summary.rows_study:
        known["rows.png"] = partial(study_figures.rows, summary)
    if any(point.variation and point.share for point in summary.frontier):
        known["imbalance.png"] = partial(study_figures.imbalance, summary)
    if study_figures.of_epochs(summary):
        known["epochs.png"] = partial(study_figures.epochs, summary)
    for arm in dict.fromkeys(ablation.arm for ablation in summary.ablations):
        known[f"ablations_{arm}.png"] = partial(study_figures.ablations, summary, arm)
    return known


def draw_all(summary: Summary, folder: Path) -> None:
    """Draws every figure of what has been run.

    Args:
        summary: What to show.
        folder: Where to write the PNGs.
    """
    for name, draw in figures(summary).items():
        figure = draw()
        sign(figure, f"Base model: {summary.provenance.model}.")
        metadata = {"Software": None, "Description": digest(summary)}
        figure.savefig(folder / name, dpi=150, bbox_inches="tight", metadata=metadata)


def digest(summary: Summary) -> str:
    """What a figure carries to say which summary it shows.

    Args:
        summary: The summary.

    Returns:
        A SHA-256 in hexadecimal.
    """
    return hashlib.sha256(summary.json().encode()).hexdigest()


def digest_of(file: Path) -> str | None:
    """Which summary a figure shows.

    Args:
        file: The PNG.

    Returns:
        What `digest` gave when it was drawn; None if there is no such file.
    """
    if not file.exists():
        return None
    with Image.open(file) as image:
        found: str | None = image.info.get("Description")
        return found
