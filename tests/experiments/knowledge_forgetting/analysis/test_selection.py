"""Learning rates are chosen on validation, by the two rules."""

from __future__ import annotations

import pytest

from experiments.knowledge_forgetting.analysis.selection import recipe_levels, tune, tune_for_knowledge
from experiments.knowledge_forgetting.analysis.studies import points_of


def chosen(rule, grid):
    results = grid.read()
    return rule(points_of(results.trained), (0,), results.sets)


def add(grid, arm, *by_rate):
    """Runs at the rates 1, 2, …; of each, facts and tasks on validation. On test all is the other way round."""
    for rate, (facts, tasks) in enumerate(by_rate, 1):
        grid.add(arm, float(rate), 1 - facts, 1 - tasks, validation={"facts": facts, "tasks": tasks})


def test_the_first_rule_takes_the_highest_downstream_accuracy_on_validation(grid):
    add(grid, "full", (0.9, 0.5), (0.8, 0.7), (0.5, 0.6))
    tuned = chosen(tune, grid)["full"]
    assert (tuned.point.learning_rate, tuned.at_edge) == (2.0, False)


def test_of_equals_it_takes_the_most_knowledge(grid):
    add(grid, "full", (0.6, 0.7), (0.8, 0.7), (0.7, 0.7))
    assert chosen(tune, grid)["full"].point.learning_rate == 2.0


@pytest.mark.parametrize("best", [0, 2])
def test_a_choice_at_the_edge_of_the_grid_is_marked(grid, best):
    add(grid, "full", *((0.5, 0.9 if n == best else 0.5) for n in range(3)))
    assert chosen(tune, grid)["full"].at_edge


def test_the_second_rule_takes_the_most_knowledge_at_most_a_point_below_full_fine_tuning(grid):
    add(grid, "full", (0.6, 0.795), (0.5, 0.8), (0.9, 0.7))
    add(grid, "lora_mlp", (0.95, 0.785), (0.7, 0.79), (0.6, 0.9))
    add(grid, "lora_all", (0.95, 0.5))
    tuned = chosen(tune_for_knowledge, grid)
    assert tuned["full"].point.learning_rate == 1.0
    assert tuned["lora_mlp"].point.learning_rate == 2.0
    assert (tuned["lora_all"].point, tuned["lora_all"].at_edge) == (None, False)


def test_the_arm_that_learns_least_is_told_on_validation(grid):
    add(grid, "full", (0.9, 0.5), (0.8, 0.9))
    add(grid, "lora_mlp", (0.9, 0.6), (0.8, 0.7))
    results = grid.read()
    tuned = tune(points_of(results.trained), (0,), results.sets)
    assert recipe_levels(tuned, (0,), results.sets) == [tuned["lora_mlp"].point]
    assert recipe_levels({}, (0,), results.sets) == []


def test_the_second_rule_needs_full_fine_tuning(grid):
    add(grid, "lora_mlp", (0.9, 0.8))
    assert chosen(tune_for_knowledge, grid) == {}
