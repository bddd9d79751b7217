"""Knowledge at matched downstream accuracy, against what one reads off by hand."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.knowledge_forgetting.analysis.bootstrap import Figures
from experiments.knowledge_forgetting.analysis.matched import (
    fixed_levels,
    match,
    match_alike,
    most_at_least,
    read_at,
)


def draws(*values):
    """The same in every one of 11 draws."""
    return np.tile(np.array(values), (11, 1))


def point(downstream, kept):
    """A point with one value for all draws, or one value a draw."""
    shape = np.ones(11)
    return Figures(knowledge=shape * kept, kept=shape * kept, downstream=shape * downstream)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0.5, 0.9),  # a point itself
        (0.6, 0.8),  # half way
        (0.65, 0.75),  # three quarters of the way
        (0.75, 0.575),  # between the second and the third point
        (0.8, 0.45),  # the end
        (0.4, 0.9),  # below all: what the first point keeps, at least
        (0.81, np.nan),  # beyond the end: nothing is extrapolated
    ],
)
def test_a_falling_line_is_interpolated(level, expected):
    x, y = draws(0.5, 0.7, 0.8), draws(0.9, 0.7, 0.45)
    np.testing.assert_allclose(most_at_least(x, y, np.full(11, level)), expected, rtol=1e-12)


def test_a_line_that_turns_back_is_read_where_it_keeps_the_most():
    """A too high rate learns less and forgets more: it does not count."""
    x, y = draws(0.5, 0.8, 0.6), draws(0.9, 0.6, 0.1)
    np.testing.assert_allclose(most_at_least(x, y, np.full(11, 0.65)), 0.75)


def test_a_single_learning_rate_is_no_line():
    np.testing.assert_allclose(most_at_least(draws(0.5), draws(0.9), np.full(11, 0.5)), 0.9)
    assert np.isnan(most_at_least(draws(0.5), draws(0.9), np.full(11, 0.51))).all()


def test_bounds_and_reach_are_told():
    x, y = draws(0.5, 0.8), draws(0.9, 0.6)
    x[6:, 1] = 0.6  # in half of the draws the line ends earlier
    _, reading = read_at(x, y, np.full(11, 0.7))
    assert reading is not None
    assert (reading.is_bound, reading.reached, reading.value.value) == (False, 0.5, pytest.approx(0.7))
    assert (reading.value.low, reading.value.high) == (pytest.approx(0.7), pytest.approx(0.7))
    _, bound = read_at(x, y, np.full(11, 0.4))
    assert bound is not None
    assert (bound.is_bound, bound.reached) == (True, 1.0)
    assert read_at(x, y, np.full(11, 0.9))[1] is None


def test_a_rate_that_is_too_high_makes_no_value_of_a_bound():
    """The lowest rate is beyond the level: a lower one may keep more, whatever a high one does."""
    x, y = draws(0.5, 0.8, 0.1), draws(0.9, 0.6, 0.0)
    read = [read_at(x, y, np.full(11, level))[1] for level in (0.4, 0.5, 0.6)]
    told = [(one.value.value, one.is_bound) for one in read if one is not None]
    assert told == [(pytest.approx(0.9), True), (pytest.approx(0.9), False), (pytest.approx(0.8), False)]


def test_levels_are_of_arms_and_fixed():
    lines = {
        "full": [point(0.5, 0.975), point(0.9, 0.775)],
        "lora_mlp": [point(0.5, 0.95), point(0.7, 0.75)],
        "loramoe_free": [point(0.55, 0.9), point(0.7, 0.8)],
    }
    levels = match(lines, {arm: line[-1] for arm, line in lines.items()})
    assert [(level.name, level.downstream.value) for level in levels[:2]] == [("full", 0.9), ("lora_mlp", 0.7)]
    assert [level.downstream.value for level in levels[2:]] == [0.6, 0.7, 0.8, 0.9]
    lines["lora_all"] = [point(0.1, 0.74)]  # its rate was too high: no levels for its sake
    assert [level.downstream.value for level in match(lines, {}) if level.name == "fixed"] == [0.6, 0.7, 0.8, 0.9]
    at_full, at_lora, at_6 = levels[:3]
    assert at_full.kept["lora_mlp"] is None
    assert at_full.differences["lora_mlp"] == {"full": None, "loramoe_free": None}
    assert at_lora.kept["full"].value.value == pytest.approx(0.875)
    assert at_lora.differences["lora_mlp"]["full"].value.value == pytest.approx(0.125)
    assert at_6.differences["loramoe_free"]["lora_mlp"].value.value == pytest.approx(0.85 - (0.9 - 0.1 / 3))


def test_adapters_beside_the_same_linears_are_read_between_what_each_learns_least_and_most():
    lines = {
        "full": [point(0.1, 0.9), point(0.9, 0.8)],
        "lora_mlp": [point(0.50, 0.98), point(0.54, 0.90), point(0.60, 0.1)],  # the last was too high a rate
        "loramoe_free": [point(0.49, 0.99), point(0.55, 0.96)],
        "lora_all": [point(0.3, 0.9), point(0.8, 0.8)],  # alone beside its linears
    }
    (levels,) = match_alike(lines)
    assert [level.downstream.value for level in levels] == [0.51, 0.52, 0.53, 0.54]
    assert all(list(level.kept) == ["lora_mlp", "loramoe_free"] for level in levels)
    more = levels[1].differences["lora_mlp"]["loramoe_free"]
    assert more is not None
    assert (more.is_bound, more.value.value) == (False, pytest.approx(0.975 - 0.94))


@pytest.mark.parametrize(
    "other",
    [
        [point(0.6, 0.99), point(0.7, 0.96)],  # no range in common
        [point(0.5, 0.1)],  # nothing but rates that were too high
    ],
)
def test_adapters_that_share_no_range_have_no_levels(other):
    assert match_alike({"lora_mlp": [point(0.50, 0.98), point(0.54, 0.90)], "loramoe_free": other}) == []


def test_a_bound_is_not_compared():
    lines = {"full": [point(0.7, 0.9), point(0.9, 0.5)], "lora_mlp": [point(0.5, 0.9), point(0.6, 0.5)]}
    level = match(lines, {"lora_mlp": lines["lora_mlp"][1]})[0]
    assert level.kept["full"].is_bound
    assert level.differences["lora_mlp"] == {"full": None}


def test_a_difference_tells_in_how_many_draws_both_get_so_far():
    ends_early = np.where(np.arange(11) < 6, 0.7, 0.6)  # in half of the draws
    lines = {"lora_mlp": [point(0.5, 0.9), point(ends_early, 0.5)], "full": [point(0.5, 0.9), point(0.9, 0.5)]}
    level = match(lines, {"full": point(0.65, 0.5)})[0]
    difference = level.differences["lora_mlp"]["full"]
    assert (difference.is_bound, difference.reached) == (False, 0.5)
    assert difference.value.value == pytest.approx(0.75 - 0.6)


def test_what_two_arms_share_cancels_in_their_difference():
    noise = np.random.default_rng(0).normal(0, 0.1, size=11)
    lines = {"lora_mlp": [point(0.6, 0.5 + noise)], "full": [point(0.6, 0.7 + noise)]}
    level = match(lines, {"lora_mlp": lines["lora_mlp"][0]})[0]
    difference, kept = level.differences["lora_mlp"]["full"].value, level.kept["full"].value
    assert difference.high - difference.low < 1e-12 < kept.high - kept.low


@pytest.mark.parametrize(
    ("lowest", "highest", "levels"),
    [
        (0.1, 0.95, [0.2, 0.4, 0.6, 0.8]),
        (0.31, 0.4, [0.32, 0.34, 0.36, 0.38, 0.4]),
        (0.5, 0.5, []),
        (0.37, 0.48, [0.4, 0.42, 0.44, 0.46, 0.48]),
    ],
)
def test_fixed_levels_are_round(lowest, highest, levels):
    assert fixed_levels(lowest, highest) == levels
