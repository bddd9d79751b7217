"""One call makes everything, twice the same, and finds out what is stale."""

from __future__ import annotations

import pytest

from experiments.knowledge_forgetting.analysis.__main__ import main
from experiments.knowledge_forgetting.analysis.remake import remake, stale


def test_it_makes_the_same_bytes_twice(grid):
    grid.add("loramoe_paper", 1e-3, 0.9, 0.5)
    grid.add("loramoe_paper", 3e-3, 0.8, 0.8)
    grid.add("loramoe_paper", 1e-3, 0.7, 0.8, rows=4000)
    grid.add("loramoe_paper", 1e-3, 0.7, 0.8, changes={"r": 8})
    before = {file: file.read_bytes() for file in remake(grid.folder, draws=20)}
    assert len(before) == 6
    assert {file: file.read_bytes() for file in remake(grid.folder, draws=20)} == before
    assert stale(grid.folder, draws=20) == []


def test_a_new_run_makes_all_stale(grid):
    grid.add("full", 1e-3, 0.9, 0.8)
    made = remake(grid.folder, draws=20)
    grid.add("full", 3e-3, 0.8, 0.85)
    assert stale(grid.folder, draws=20) == made


def test_a_table_that_was_edited_is_stale(grid):
    remake(grid.folder, draws=20)
    (grid.folder / "tables.md").write_text("better")
    assert stale(grid.folder, draws=20) == [grid.folder / "tables.md"]


def test_a_spoilt_file_leaves_what_is_there(grid):
    remake(grid.folder, draws=20)
    before = (grid.folder / "tables.md").read_text()
    (grid.folder / "other.json").write_text("{")
    with pytest.raises(ValueError, match=r"other\.json is not JSON"):
        remake(grid.folder, draws=20)
    assert (grid.folder / "tables.md").read_text() == before


def test_the_command(grid, capsys):
    folder = str(grid.folder)
    assert main([folder, "--check"]) == 1
    assert f"stale: {folder}/tables.md" in capsys.readouterr().out
    assert main([folder]) == 0
    assert f"written: {folder}/summary.json" in capsys.readouterr().out
    assert main([folder, "--check"]) == 0
    (grid.folder / "base_0_0_0_.json").unlink()
    assert main([folder]) == 1
    assert "holds 0 runs of the arm base" in capsys.readouterr().err
