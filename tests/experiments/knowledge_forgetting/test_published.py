"""What is published of a grid is made from its result files, and from all of them; and pages tell what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.knowledge_forgetting.analysis.remake import TABLES_FILE, stale
from experiments.knowledge_forgetting.analysis.results import SETS_FILE

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "experiments" / "knowledge_forgetting" / "results"
FOLDERS = sorted(file.parent for file in RESULTS.glob(f"*/{SETS_FILE}"))
PAGES = ("README.md", "README_zh.md", "docs/experiments.md")
TOLD = re.compile(r"<!-- figures:(\w+) -->(.*?)<!-- /figures -->", re.DOTALL)
FIGURE = re.compile(r"\d+\.\d+")


def figures(text: str) -> set[str]:
    """All numbers with a decimal point, but those in code."""
    return set(FIGURE.findall(re.sub(r"`[^`]*`", "", text)))


@pytest.mark.slow
@pytest.mark.skipif(not FOLDERS, reason="no results are published yet")
def test_tables_and_figures_are_of_the_files_beside_them():
    assert {folder.name: stale(folder) for folder in FOLDERS} == {folder.name: [] for folder in FOLDERS}


@pytest.mark.parametrize("page", PAGES)
def test_figures_that_pages_tell_are_in_the_tables(page: str):
    """Between `<!-- figures:SCALE -->` and `<!-- /figures -->` every figure is one of that scale's tables."""
    told = TOLD.findall((ROOT / page).read_text(encoding="utf-8"))
    assert told
    for scale, text in told:
        assert figures(text)
        assert figures(text) <= figures((RESULTS / scale / TABLES_FILE).read_text(encoding="utf-8"))
