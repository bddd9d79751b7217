"""What is told of a scale, against grids whose answers are known."""

from __future__ import annotations

import json

import pytest

from experiments.knowledge_forgetting.analysis.summarise import summarise


def test_a_base_alone(grid):
    summary = summarise(grid.read(), draws=20)
    assert (summary.base.kept.value, summary.base.downstream.value) == (1.0, 0.2)
    assert (summary.rows, summary.frontier, summary.tuned, summary.levels, summary.goal) == (None, [], [], [], [])
    assert len(summary.missing) == 7


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
    for arm, line in {"full": ((1.0, 0.6), (0.5, 0.8)), "loramoe_best": ((1.0, 0.7), (0.99, 0.9))}.items():
        for rate, (facts, tasks) in enumerate(line, 1):
            grid.add(arm, float(rate), facts, tasks)
    full, best = summarise(grid.read(), draws=50).goal
    assert (full.reached, full.kept.value.value) == (False, 0.5)
    assert full.downstream.value.value == pytest.approx(0.604)  # 0.01 / 0.5 of the way to the second point
    assert full.behind.value == pytest.approx(-0.196)
    assert (best.reached, best.kept.value.value) == (True, pytest.approx(0.995))
    assert best.behind.value == pytest.approx(0.1)


def test_an_ablation_is_compared_over_the_seeds_that_both_have(grid):
    for seed, facts in enumerate((0.9, 0.5, 0.1)):
        grid.add("loramoe_paper", 1e-3, facts, 0.5, seed=seed)
    grid.add("loramoe_paper", 1e-3, 0.95, 0.4, seed=0, changes={"lora_nums": 4})
    grid.add("loramoe_paper", 1e-3, 0.95, 0.4, seed=7, changes={"lora_nums": 16})
    (ablation,) = summarise(grid.read(), draws=50).ablations
    four, own, sixteen = ablation.settings
    assert [setting.value for setting in ablation.settings] == [4, 8, 16]
    assert (own.is_own, own.kept) == (True, None)
    assert four.kept.value == pytest.approx(0.05)
    assert four.downstream.value == pytest.approx(-0.1)
    assert (sixteen.kept, sixteen.downstream) == (None, None)


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
