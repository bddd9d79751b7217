"""Numbers stand in tables with their intervals, their signs and what is uncertain of them."""

from __future__ import annotations

from experiments.knowledge_forgetting.analysis.cells import difference, reading, table
from experiments.knowledge_forgetting.analysis.matched import Reading
from loramoe.evaluation.statistics import Estimate

VALUE = Estimate(0.05, -0.011, 0.1)


def test_a_table():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --: |\n| 1 | 2 |"


def test_readings_tell_bounds_and_how_many_draws_have_them():
    assert reading(None) == "not reached"
    assert reading(Reading(VALUE, True, 1.0)) == "≥ 5.0 [-1.1, 10.0]"
    assert reading(Reading(VALUE, False, 0.634)) == "5.0 [-1.1, 10.0] in 63 %"


def test_differences_have_signs():
    assert difference(None) == "—"
    assert difference(Reading(VALUE, False, 1.0)) == "+5.0 [−1.1, +10.0]"
    assert difference(Reading(VALUE, False, 0.25)) == "+5.0 [−1.1, +10.0] in 25 %"
