"""A finding that hangs on one task is told from one that does not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.knowledge_forgetting.analysis.bootstrap import Bootstrap
from experiments.knowledge_forgetting.analysis.one_task import Pair
from experiments.knowledge_forgetting.analysis.studies import points_of
from experiments.knowledge_forgetting.analysis.summarise import summarise
from experiments.knowledge_forgetting.analysis.tables import tables
from tests.experiments.knowledge_forgetting.analysis.conftest import Grid, packed

TASKS = ("easy", "odd")


def with_two_tasks(grid: Grid) -> None:
    """Every run answers a second task, which only LoRAMoE learns, and only at its second rate."""
    (grid.folder / "sets.json").write_text(
        json.dumps({"knowledge": ["facts"], "downstream": list(TASKS), "chance": {}}), encoding="utf-8"
    )
    for file in grid.folder.glob("*_*.json"):
        run = json.loads(file.read_text(encoding="utf-8"))
        learnt = run["settings"]["arm"] == "loramoe_all" and run["settings"]["learning_rate"] == 2.0
        odd = np.arange(100) < (80 if learnt else 0)
        for split in ("validation", "test"):
            run["accuracy"][split] |= {"easy": run["accuracy"][split].pop("tasks"), "odd": float(odd.mean())}
            run["items"][split] |= {"easy": run["items"][split].pop("tasks"), "odd": packed(odd)}
            run["counts"][split] = dict.fromkeys(("facts", *TASKS), 100)
        file.write_text(json.dumps(run), encoding="utf-8")


@pytest.fixture
def two_tasks(grid: Grid) -> Grid:
    for changes in ({}, {"epochs": 2}):
        for arm, line in {"full": ((1.0, 0.5), (0.8, 0.6)), "loramoe_all": ((1.0, 0.4), (0.9, 0.5))}.items():
            for rate, (facts, tasks) in enumerate(line, 1):
                for seed in range(3):
                    grid.add(arm, float(rate), facts, tasks, seed=seed, changes=changes)
    with_two_tasks(grid)
    return grid


def told(pairs: list[Pair]) -> dict[str | None, list[float | None]]:
    """For the task that is left out: the level, what is kept more there, what is learnt more."""
    return {
        pair.left_out: [
            round(100 * pair.downstream.value, 1),
            round(100 * pair.keeps_more.value.value, 1) if pair.keeps_more else None,
            round(100 * pair.learns_more.value, 1),
        ]
        for pair in pairs
    }


def test_each_task_is_left_out_once_and_the_arms_are_tuned_anew(two_tasks):
    summary = summarise(two_tasks.read(), draws=50)
    assert [(pair.than, pair.arm) for pair in summary.pairs] == [("full", "loramoe_all")] * 3
    assert told(summary.pairs) == {
        None: [30.0, 17.8, 35.0],  # at 30 %, two ninths of the way from 20 to 65, LoRAMoE keeps 97.8 %, full 80 %
        "odd": [50.0, -10.0, -10.0],
        "easy": [0.0, 0.0, 80.0],
    }
    (alike,) = summary.treated
    assert told(alike.pairs) == told(summary.pairs)


def test_one_task_alone_cannot_be_left_out(grid):
    for arm in ("full", "loramoe_all"):
        grid.add(arm, 1.0, 0.9, 0.5)
    assert [pair.left_out for pair in summarise(grid.read(), draws=20).pairs] == [None]


def test_without_a_set_the_draws_are_those_of_the_others(two_tasks):
    results = two_tasks.read()
    bootstrap = Bootstrap(results, draws=50)
    without = bootstrap.without("odd")
    point = next(one for one in points_of(results.trained) if one.arm == "full")
    halves = [bootstrap.without(name).point(point).downstream / 2 for name in TASKS]
    assert np.allclose(sum(halves), bootstrap.point(point).downstream)
    assert np.array_equal(without.point(point).kept, bootstrap.point(point).kept)
    assert without.point(point).downstream[0] == pytest.approx(0.5)


def test_both_arms_get_to_the_level_in_every_draw_though_either_may_be_ahead(grid):
    for seed, (full, ours) in enumerate(((0.4, 0.6), (0.6, 0.4), (0.5, 0.51))):
        grid.add("full", 1.0, 1.0, 0.2, seed=seed)
        grid.add("full", 2.0, 0.7, full, seed=seed)
        grid.add("loramoe_all", 1.0, 1.0, 0.2, seed=seed)
        grid.add("loramoe_all", 2.0, 0.9, ours, seed=seed)
    (pair,) = summarise(grid.read(), draws=300).pairs
    assert pair.keeps_more is not None
    assert pair.keeps_more.reached == 1.0
    assert pair.keeps_more.value.low <= pair.keeps_more.value.value <= pair.keeps_more.value.high
    assert pair.learns_more.low < 0 < pair.learns_more.high


def test_the_page_tells_it(two_tasks):
    section = tables(summarise(two_tasks.read(), draws=50)).split("## With each task left out\n\n")[1].split("\n## ")[0]
    rows = [line.split(" | ")[:3] for line in section.splitlines()[4:] if line]
    assert rows == [["| LoRAMoE on attention and MLP", "full fine-tuning", left] for left in ("none", "easy", "odd")]
    assert section.count("−10.0 [") == 2


def test_without_two_arms_it_says_so(grid):
    grid.add("full", 1.0, 0.9, 0.5)
    page = tables(summarise(grid.read(), draws=20))
    assert "## With each task left out\n\nNo two arms to compare yet.\n" in page
