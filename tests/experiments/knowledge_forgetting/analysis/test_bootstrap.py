"""The bootstrap: paired, repeatable, and as wide as theory says."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.knowledge_forgetting.analysis.bootstrap import Bootstrap, estimate, resampled_means, seed_weights
from experiments.knowledge_forgetting.analysis.studies import points_of


def test_first_line_is_what_was_observed(grid):
    for seed, facts in enumerate((0.9, 0.8, 0.4)):
        grid.add("full", 1e-3, facts, 0.5, seed=seed)
    grid.add("base", 0.0, 0.75, 0.2, rows=0)
    results = grid.read()
    figures = Bootstrap(results, draws=10).point(points_of(results.trained)[0])
    assert figures.knowledge[0] == pytest.approx(0.7)
    assert figures.kept[0] == pytest.approx(0.7 / 0.75)
    assert figures.downstream[0] == pytest.approx(0.5)


def test_what_is_kept_is_corrected_for_chance_in_every_draw(grid):
    grid.sets(facts=0.25)
    grid.add("base", 0.0, 0.75, 0.2, rows=0)
    grid.add("full", 1e-3, 0.5, 0.5, validation={"facts": 0.25})
    results = grid.read()
    (point,) = points_of(results.trained)
    bootstrap = Bootstrap(results, draws=50)
    figures = bootstrap.point(point)
    assert figures.kept[0] == pytest.approx(0.5)
    np.testing.assert_allclose(figures.kept, (figures.knowledge - 0.25) / (bootstrap.base.knowledge - 0.25))
    np.testing.assert_allclose(bootstrap.base.kept, 1.0)
    assert Bootstrap(results, 50, "validation").point(point).kept[0] == 0.0


def test_draws_in_which_the_base_only_guesses_have_no_share(grid):
    grid.sets(facts=0.5)
    grid.add("base", 0.0, 0.51, 0.2, rows=0)
    grid.add("full", 1e-3, 0.51, 0.5)
    results = grid.read()
    bootstrap = Bootstrap(results, draws=50)
    guesses = bootstrap.base.knowledge <= 0.5
    assert 5 < guesses.sum() < 45
    np.testing.assert_array_equal(np.isnan(bootstrap.point(points_of(results.trained)[0]).kept), guesses)


def test_arms_with_the_same_items_do_not_differ_in_any_draw(grid):
    right = np.random.default_rng(0).random((3, 100)) < 0.6
    for arm in ("full", "lora_mlp"):
        for seed in range(3):
            grid.add(arm, 1e-3, right[seed], right[seed], seed=seed)
    results = grid.read()
    bootstrap = Bootstrap(results, draws=200)
    one, other = (bootstrap.point(point) for point in points_of(results.trained))
    np.testing.assert_array_equal(one.kept - other.kept, 0.0)
    assert one.kept[1:].std() > 0.01


def test_draws_of_a_run_stay_the_same_while_the_grid_grows(grid):
    def kept():
        results = grid.read()
        return Bootstrap(results, draws=50).point(points_of(results.trained)[0]).kept

    grid.add("full", 1e-3, 0.6, 0.5)
    before = kept()
    grid.add("lora_mlp", 1e-3, 0.7, 0.5)
    np.testing.assert_array_equal(kept(), before)


def test_the_spread_over_items_is_that_of_a_binomial():
    right_IN = (np.arange(400) < 120)[:, None]
    means = resampled_means(right_IN, draws=4000)
    assert means.shape == (4001, 1)
    assert means[0, 0] == 0.3
    assert means[1:].mean() == pytest.approx(0.3, abs=0.002)
    assert means[1:].std() == pytest.approx((0.3 * 0.7 / 400) ** 0.5, rel=0.05)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_variance_over_seeds_is_that_of_a_mean(seeds):
    values = np.linspace(0.2, 0.8, seeds)
    means = seed_weights(seeds, draws=4000) @ values
    assert means[0] == pytest.approx(values.mean())
    assert means[1:].std() == pytest.approx(values.std(ddof=1) / seeds**0.5, rel=0.05)


def test_intervals_cover_as_often_as_they_say():
    """Items alone: of 300 samples of 200 items, about 95 % have the truth in their interval."""
    truth, covered = 0.3, 0
    generator = np.random.default_rng(1)
    samples = (generator.random((300, 200)) < truth).T
    means = resampled_means(samples, draws=600)
    for sample in means.T:
        interval = estimate(sample)
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / 300 <= 0.97


def test_three_seeds_cover_three_times_in_four():
    """What the module says of few seeds: where they alone differ, the interval is their range."""
    weights_BS = seed_weights(3, draws=2000)
    seeds = np.random.default_rng(2).normal(size=(1000, 3))
    intervals = [estimate(weights_BS @ of_sample) for of_sample in seeds]
    assert all(i.low == s.min() and i.high == s.max() for i, s in zip(intervals, seeds, strict=True))
    assert np.mean([i.low <= 0 <= i.high for i in intervals]) == pytest.approx(0.75, abs=0.03)
