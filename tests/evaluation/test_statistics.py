"""Figures of a task: ratios of sums, with intervals that hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loramoe.evaluation import summarise
from loramoe.evaluation.statistics import resampled_ratios


def rows(figures: list[float], **more: object) -> list[dict[str, object]]:
    return [{"where": f"row {n}", "task_type": None, "f1": figure, **more} for n, figure in enumerate(figures)]


def test_a_mean_and_its_difference() -> None:
    (line,) = summarise("facts", 2, {"base": rows([0, 0, 1, 1]), "one": rows([0, 1, 1, 1])})
    assert (line.task, line.task_type, line.metric, line.questions, line.too_long) == ("facts", None, "F1", 4, 2)
    assert {name: one.value for name, one in line.values.items()} == {"base": 0.5, "one": 0.75}
    assert {name: one.value for name, one in line.differences.items()} == {"one": 0.25}


def test_a_perplexity_counts_tokens() -> None:
    scores = [
        {"task_type": None, "log_likelihood": -2.0, "tokens": 1},
        {"task_type": None, "log_likelihood": -1.0, "tokens": 4},
    ]
    lines = {line.metric: line for line in summarise("facts", 0, {"base": scores})}
    assert lines["log-likelihood"].values["base"].value == -1.5
    assert lines["perplexity"].values["base"].value == pytest.approx(math.exp(3 / 5))


def test_types_and_metrics_count_the_rows_that_have_them() -> None:
    first, second = rows([1.0, 0.0], accuracy=1.0), rows([0.5])
    for row in first:
        row["task_type"] = 1
    second[0]["task_type"] = 0
    second.append({"task_type": None, "recall": 1.0})
    lines = summarise("facts", 0, {"base": first + second})
    found = [(line.task_type, line.metric, line.questions, line.values["base"].value) for line in lines]
    assert found == [
        (None, "accuracy", 2, 1.0),
        (None, "F1", 3, 0.5),
        (None, "recall", 1, 1.0),
        (0, "F1", 1, 0.5),
        (1, "accuracy", 2, 1.0),
        (1, "F1", 2, 0.5),
    ]
    assert {line.task_type for line in summarise("facts", 0, {"base": first})} == {None}


@pytest.mark.slow
def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        (line,) = summarise("facts", 0, {"base": rows(list(draw.normal(3.0, 1.0, size=60)))})
        held += line.values["base"].low <= 3.0 <= line.values["base"].high
    assert 88 <= held <= 99


def test_a_difference_is_paired() -> None:
    draw = np.random.default_rng(0)
    base = draw.normal(0.0, 10.0, size=50)
    (line,) = summarise("facts", 0, {"base": rows(list(base)), "one": rows(list(base + 0.5))})
    own, difference = line.values["one"], line.differences["one"]
    assert own.high - own.low > 4
    assert difference.low == pytest.approx(0.5)
    assert difference.high == pytest.approx(0.5)


def test_the_draws_are_the_same_whatever_the_order() -> None:
    figures = np.random.default_rng(1).normal(size=(30, 2))
    weights = np.arange(1.0, 31.0)
    expected = resampled_ratios(figures, weights)
    np.testing.assert_array_equal(resampled_ratios(figures[::-1], weights[::-1]), expected)
    assert expected.shape == (2000, 2)
    assert expected.std() > 0
