"""Sets that no arm learns are told, and count for nothing."""

from __future__ import annotations

import json

import pytest

from experiments.knowledge_forgetting.analysis.learnt import without_unlearnt
from experiments.knowledge_forgetting.analysis.summarise import summarise
from experiments.knowledge_forgetting.analysis.tables import tables
from tests.experiments.knowledge_forgetting.analysis.conftest import ITEMS, Grid, packed


def add_quiz(grid: Grid, *shares: float, chance: float = 0.6) -> None:
    """Gives all runs of the grid a third set: the base's share, then those of the others; on both splits the same."""
    sets = {"knowledge": ["facts"], "downstream": ["tasks", "quiz"], "chance": {"quiz": chance}}
    for file, share in zip(sorted(grid.folder.glob("*_*.json")), shares, strict=True):
        content = json.loads(file.read_text())
        for split in ("validation", "test"):
            content["accuracy"][split]["quiz"] = share
            content["counts"][split]["quiz"] = ITEMS
            content["items"][split]["quiz"] = packed([n < round(share * ITEMS) for n in range(ITEMS)])
        file.write_text(json.dumps(content))
    (grid.folder / "sets.json").write_text(json.dumps(sets))


def test_a_set_at_chance_is_told_and_not_counted(grid):
    for seed in range(2):
        grid.add("full", 1.0, 0.9, 0.5, seed=seed)
    add_quiz(grid, 0.5, 0.4, 0.6)
    summary = summarise(grid.read(), draws=20)
    (point,) = summary.frontier
    assert (summary.sets.downstream, summary.sets.uncounted) == (("tasks",), ("quiz",))
    assert (point.downstream.value, point.by_set["quiz"]) == (0.5, 0.5)
    page = tables(summary)
    assert (
        "downstream over tasks; not over quiz, in which no arm is better on validation than a guess on the test items"
        in page
    )
    assert "| facts | tasks | quiz | downstream, all sets |" in page
    assert "| 90.0 | 50.0 | 50.0 | 50.0 |" in page


def test_a_set_counts_once_an_arm_is_above_chance_on_validation(grid):
    grid.add("full", 1.0, 0.9, 0.5)
    grid.add("lora_mlp", 1.0, 0.9, 0.5)
    add_quiz(grid, 0.2, 0.4, 0.62)
    summary = summarise(grid.read(), draws=20)
    assert (summary.sets.downstream, summary.sets.uncounted) == (("tasks", "quiz"), ())
    assert [point.downstream.value for point in summary.frontier] == pytest.approx([0.45, 0.56])
    assert "downstream, all sets" not in tables(summary)


def test_one_lucky_seed_is_no_learning(grid):
    for seed in range(2):
        grid.add("full", 1.0, 0.9, 0.5, seed=seed)
    add_quiz(grid, 0.2, 0.5, 0.65)
    assert without_unlearnt(grid.read()).sets.uncounted == ("quiz",)


def test_if_nothing_is_learnt_all_sets_count(grid):
    grid.add("full", 1.0, 0.9, 0.0)
    add_quiz(grid, 0.5, 0.5)
    assert without_unlearnt(grid.read()).sets.downstream == ("tasks", "quiz")


def test_a_base_alone_counts_all_sets(grid):
    add_quiz(grid, 0.5)
    assert without_unlearnt(grid.read()).sets.downstream == ("tasks", "quiz")
