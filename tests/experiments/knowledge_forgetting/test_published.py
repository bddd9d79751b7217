"""What is published of a grid is made from its result files, and from all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.knowledge_forgetting.analysis.remake import stale
from experiments.knowledge_forgetting.analysis.results import SETS_FILE

RESULTS = Path(__file__).resolve().parents[3] / "experiments" / "knowledge_forgetting" / "results"
FOLDERS = sorted(file.parent for file in RESULTS.glob(f"*/{SETS_FILE}"))


@pytest.mark.skipif(not FOLDERS, reason="no results are published yet")
def test_tables_and_figures_are_of_the_files_beside_them():
    assert {folder.name: stale(folder) for folder in FOLDERS} == {folder.name: [] for folder in FOLDERS}
