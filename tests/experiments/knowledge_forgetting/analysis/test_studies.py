"""Settings alone say which runs belong to which study."""

from __future__ import annotations

import pytest

from experiments.knowledge_forgetting.analysis import studies


def points_of(grid):
    return studies.points_of(grid.read().trained)


def test_runs_that_differ_in_their_seed_are_one_point(grid):
    for seed in (2, 0):
        grid.add("full", 1e-3, 0.9, 0.8, seed=seed)
    grid.add("full", 1e-4, 0.9, 0.8)
    assert [(point.learning_rate, point.seeds) for point in points_of(grid)] == [(1e-4, (0,)), (1e-3, (0, 2))]


def test_frontier_is_of_the_number_of_rows_with_the_most_runs(grid):
    for rows in (40, 400, 4000):
        grid.add("full", 1e-3, 0.9, 0.8, rows=rows)
    grid.add("loramoe_paper", 1e-3, 0.9, 0.8)
    grid.add("loramoe_paper", 1e-3, 0.9, 0.8, changes={"r": 8})
    points = points_of(grid)
    assert studies.main_rows(points) == 400
    assert [(point.arm, point.rows) for point in studies.frontier(points)] == [("full", 400), ("loramoe_paper", 400)]
    assert [[point.rows for point in line] for line in studies.rows_study(points)] == [[40, 400, 4000]]


def test_nothing_is_asked_of_an_empty_grid(grid):
    assert studies.main_rows(points_of(grid)) is None
    assert studies.complete(studies.frontier(points_of(grid))) == ([], ())


@pytest.mark.parametrize(
    ("seeds_by_rate", "rates", "seeds"),
    [
        ({1: (0, 1, 2), 2: (0, 1, 2), 3: (0,)}, [1, 2], (0, 1, 2)),  # 6 runs are more than 3
        ({1: (0, 1, 2), 2: (0,), 3: (0,), 4: (0,)}, [1, 2, 3, 4], (0,)),  # 4 runs are more than 3
        ({1: (0, 1), 2: (1,)}, [1], (0, 1)),  # of equals the one with more seeds
        # A seed that most points have, for another study, does not stand in the way of a larger part without it.
        ({1: (0, 1, 2), 2: (0, 1, 2, 9), 3: (0, 1, 2), 4: (9,), 5: (9,), 6: (9,)}, [1, 2, 3], (0, 1, 2)),
    ],
)
def test_the_largest_part_with_all_seeds_is_compared(grid, seeds_by_rate, rates, seeds):
    for rate, of_rate in seeds_by_rate.items():
        for seed in of_rate:
            grid.add("full", float(rate), 0.9, 0.8, seed=seed)
    points, found = studies.complete(points_of(grid))
    assert ([point.learning_rate for point in points], found) == (rates, seeds)


def test_an_ablation_has_its_own_point(grid):
    own = {"loramoe_paper": 1e-3, "loramoe_free": 3e-3}
    for arm, rate in own.items():
        grid.add(arm, rate, 0.9, 0.8)
    grid.add("loramoe_paper", 1e-3, 0.8, 0.8, changes={"r": 8})
    grid.add("loramoe_paper", 1e-3, 0.8, 0.8, changes={"r": 2})
    grid.add("loramoe_paper", 3e-3, 0.8, 0.8, changes={"r": 2})
    grid.add("loramoe_paper", 3e-3, 0.8, 0.8, changes={"r": 2, "lora_nums": 2})
    with_own, without = studies.ablations(points_of(grid))
    assert (with_own.key, with_own.learning_rate, with_own.own.arm) == ("r", 1e-3, "loramoe_paper")
    assert sorted(point.changes["r"] for point in with_own.points) == [2, 8]
    assert (without.learning_rate, without.own, len(without.points)) == (3e-3, None, 1)


def test_values_of_settings_have_an_order():
    values = ["word", 16, ["down_proj"], 0.5, 2]
    assert sorted(values, key=studies.order) == [0.5, 2, 16, "word", ["down_proj"]]


def test_what_is_missing_is_said(grid):
    for rate in (1, 2, 3, 4):
        for seed in range(3 if rate < 4 else 1):
            grid.add("full", float(rate), 0.9, 0.8, seed=seed)
    frontier = studies.frontier(points_of(grid))
    sentences = studies.missing(frontier, studies.complete(frontier)[0])
    assert sentences[0] == (
        "full fine-tuning at 4: 1 seeds of at least 3; left out wherever arms are tuned and compared."
    )
    assert "LoRA on the MLP: 0 learning rates of at least 4." in sentences
