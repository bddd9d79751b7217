"""What is told of a scale, against grids whose answers are known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from experiments.knowledge_forgetting.analysis.summarise import summarise
from tests.experiments.knowledge_forgetting.analysis.conftest import Grid, add_changed


def test_a_base_alone(grid):
    summary = summarise(grid.read(), draws=20)
    assert (summary.base.kept.value, summary.base.downstream.value) == (1.0, 0.2)
    assert (summary.rows, summary.frontier, summary.tuned, summary.levels, summary.goal) == (None, [], [], [], [])
    assert len(summary.missing) == 7
    assert (summary.recipes, summary.beyond, summary.alike) == ([], [], [])


def test_a_point_tells_means_and_each_seed(grid):
    for seed, facts in enumerate((0.9, 0.8, 0.4)):
        grid.add("full", 1e-3, facts, 0.5, seed=seed)
    (point,) = summarise(grid.read(), draws=200).frontier
    assert point.knowledge.value == pytest.approx(0.7)
    assert point.knowledge.by_seed == {0: 0.9, 1: 0.8, 2: 0.4}
    assert 0.35 < point.knowledge.low < 0.5
    assert 0.85 < point.knowledge.high < 0.95
    assert (point.downstream.value, point.by_set["tasks"], point.variation, point.share) == (0.5, 0.5, None, None)


def test_the_goal_is_reached_or_how_near(grid):
    for arm, line in {"full": ((1.0, 0.6), (0.5, 0.8)), "loramoe_all": ((1.0, 0.7), (0.99, 0.9))}.items():
        for rate, (facts, tasks) in enumerate(line, 1):
            grid.add(arm, float(rate), facts, tasks)
    full, best = summarise(grid.read(), draws=50).goal
    assert (full.reached, full.kept.value.value) == (False, 0.5)
    assert full.downstream.value.value == pytest.approx(0.604)  # 0.01 / 0.5 of the way to the second point
    assert full.behind.value.value == pytest.approx(-0.196)
    assert full.reached_in == 0.0
    assert 0.5 < best.reached_in < 1.0  # in some draws the second point keeps 98 %
    assert (best.reached, best.kept.value.value) == (True, pytest.approx(0.995))
    assert best.behind.value.value == pytest.approx(0.1)


def test_arms_in_which_the_same_was_changed_are_compared_with_each_other(grid):
    add_changed(grid)
    grid.add("loramoe_all", 1.0, 0.0, 0.0, changes={"replay": 0.5})  # full fine-tuning has nothing of the kind
    (alike,) = summarise(grid.read(), draws=50).treated
    assert (alike.changes, alike.seeds) == ({"epochs": 2}, (0, 1, 2))
    points = [(p.arm, p.learning_rate, p.downstream.value, list(p.kept.by_seed)) for p in alike.points]
    assert points == [
        (arm, rate, pytest.approx(downstream), [0, 1, 2])
        for arm, lowest in (("full", 0.7), ("loramoe_all", 0.65))
        for rate, downstream in ((1.0, lowest), (2.0, 0.8))
    ]
    assert [(one.arm, one.point.learning_rate, one.point.kept.value) for one in alike.tuned] == [
        ("full", 2.0, pytest.approx(0.5)),
        ("loramoe_all", 2.0, pytest.approx(0.9)),
    ]
    assert [level.name for level in alike.levels] == ["unchanged", "full", "fixed", "fixed", "fixed"]
    assert alike.levels[0].downstream.value == pytest.approx(0.6)
    more = {round(level.downstream.value, 2): level.differences["full"]["loramoe_all"] for level in alike.levels}
    assert more[0.8].value.value == pytest.approx(0.4)
    by_full, by_itself = ([(one.arm, one.reached) for one in goals] for goals in (alike.goal, alike.goal_alike))
    assert by_full == [("full", False), ("loramoe_all", True)]  # at 60 %, the line of one begins with all facts
    assert by_itself == [("full", False), ("loramoe_all", False)]


def test_a_change_without_full_fine_tuning_of_as_many_seeds_is_compared_with_nothing(grid):
    for seed in range(3):
        grid.add("full", 1.0, 0.8, 0.6, seed=seed)
        for arm in ("lora_all", "loramoe_all"):
            grid.add(arm, 1.0, 0.9, 0.6, seed=seed, changes={"epochs": 2})
    grid.add("full", 1.0, 0.9, 0.6, seed=1, changes={"epochs": 2})
    assert summarise(grid.read(), draws=20).treated == []


def test_full_fine_tuning_as_it_is_has_the_seeds_of_what_it_is_compared_with(grid):
    for seed, downstream in enumerate((0.3, 0.6, 0.9)):
        grid.add("full", 1.0, 0.8, downstream, seed=seed)
    for arm in ("full", "loramoe_all"):
        grid.add(arm, 1.0, 0.9, 0.7, seed=1, changes={"epochs": 2})
    (alike,) = summarise(grid.read(), draws=20).treated
    assert alike.seeds == (1,)
    assert alike.levels[0].name == "unchanged"
    assert alike.levels[0].downstream.value == pytest.approx(0.6)


def test_a_line_of_the_rows_study_has_the_same_seeds_throughout(grid):
    for seed, rows in ((0, 100), (0, 400), (1, 400), (1, 800), (0, 800)):
        grid.add("full", 1.0, 0.9 - 0.1 * seed, 0.5, seed=seed, rows=rows)
    (line,) = summarise(grid.read(), draws=20).rows_study
    assert [list(point.kept.by_seed) for point in line] == [[0], [0], [0]]


def test_shares_are_means_over_the_seeds_that_have_rows_of_the_type(grid):
    for seed, share in enumerate(({"0": [0.6, 0.4]}, {"0": [0.4, 0.6], "1": [0.3, 0.7]})):
        grid.add("loramoe_paper", 1.0, 0.9, 0.5, seed=seed, routing={"coefficient_of_variation": 0.1, "share": share})
    (point,) = summarise(grid.read(), draws=20).frontier
    assert point.share == {"0": [0.5, 0.5], "1": [0.3, 0.7]}


def test_the_goal_may_be_reached_by_chance(grid):
    """It is uncertain where what an arm has right, and what the base has, are other items."""
    half = np.arange(100) % 2 == 0
    grid.add("base", 0.0, half, 0.2, rows=0)
    grid.add("full", 1.0, ~half, 0.5)
    (full,) = summarise(grid.read(), draws=200).goal
    assert full.reached
    assert 0.4 < full.reached_in < 0.7


def test_values_of_a_setting_are_in_order(grid):
    grid.add("loramoe_paper", 1e-3, 0.9, 0.5)
    for value in (16, 4):
        grid.add("loramoe_paper", 1e-3, 0.95, 0.4, changes={"lora_nums": value})
    (ablation,) = summarise(grid.read(), draws=50).ablations
    assert [(setting.value, setting.is_own) for setting in ablation.settings] == [(4, False), (8, True), (16, False)]


def test_runs_beyond_are_told_and_change_nothing_else(grid):
    grid.add("full", 1e-3, 0.9, 0.5)
    before = summarise(grid.read(), draws=20)
    beyond = Grid(grid.folder / "beyond")
    (beyond.folder / "sets.json").unlink()
    beyond.add("full", 1.0, 0.1, 0.3)
    summary = summarise(grid.read(), draws=20)
    assert [(point.learning_rate, point.kept.value) for point in summary.beyond] == [(1.0, pytest.approx(0.1))]
    assert dataclasses.replace(summary, beyond=[], provenance=before.provenance) == before


def test_routing_is_told_with_the_range_of_the_seeds(grid):
    for seed, variation in enumerate((1.0, 3.0)):
        routing = {"coefficient_of_variation": variation, "share": {"0": [0.2 * seed, 1 - 0.2 * seed]}}
        grid.add("loramoe_free", 1e-3, 0.9, 0.5, seed=seed, routing=routing)
    (point,) = summarise(grid.read(), draws=20).frontier
    assert (point.variation.value, point.variation.low, point.variation.high) == (2.0, 1.0, 3.0)
    assert point.share == {"0": [pytest.approx(0.1), pytest.approx(0.9)]}


def test_the_summary_is_json_with_everything_that_is_told(whole):
    summary = summarise(whole.read(), draws=50)
    content = json.loads(summary.json(), parse_constant=pytest.fail)
    assert content["provenance"]["dates"] == ["2026-11-20", "2026-11-22"]
    assert (len(content["frontier"]), len(content["rows_study"]), len(content["ablations"])) == (28, 7, 3)
    assert (content["seeds"], content["missing"], content["draws"]) == ([0, 1, 2], [], 50)
