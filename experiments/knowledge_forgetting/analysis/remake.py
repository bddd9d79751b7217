"""Makes a scale's tables, figures and summary from its result files, or finds out that they are stale."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from experiments.knowledge_forgetting.analysis.bootstrap import DRAWS
from experiments.knowledge_forgetting.analysis.figures import digest, digest_of, draw_all, figures
from experiments.knowledge_forgetting.analysis.results import SUMMARY_FILE, read
from experiments.knowledge_forgetting.analysis.summarise import summarise
from experiments.knowledge_forgetting.analysis.summary import Summary
from experiments.knowledge_forgetting.analysis.tables import tables

TABLES_FILE: Final = "tables.md"


def remake(folder: Path, draws: int = DRAWS) -> list[Path]:
    """Writes `tables.md`, `summary.json` and the figures of whatever part of the grid has been run.

    Args:
        folder: With the result files; what is made lies beside them.
        draws: Of the bootstrap.

    Returns:
        The files.

    Raises:
        ValueError: If a result file cannot be used; nothing is written then.
    """
    summary = summarise(read(folder), draws)
    texts = _texts(summary)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    draw_all(summary, folder)
    return [folder / name for name in [*texts, *figures(summary)]]


def stale(folder: Path, draws: int = DRAWS) -> list[Path]:
    """Files that are missing, or tell of other results than those that are there.

    Args:
        folder: With the result files.
        draws: Of the bootstrap.

    Returns:
        Those that `remake` would change.

    Raises:
        ValueError: If a result file cannot be used.
    """
    summary = summarise(read(folder), draws)
    found = [folder / name for name, text in _texts(summary).items() if _text_of(folder / name) != text]
    return found + [folder / name for name in figures(summary) if digest_of(folder / name) != digest(summary)]


def _texts(summary: Summary) -> dict[str, str]:
    return {TABLES_FILE: tables(summary), SUMMARY_FILE: summary.json()}


def _text_of(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.exists() else None
