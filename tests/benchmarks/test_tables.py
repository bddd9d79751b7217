"""Numbers of the tables with known answers, and the tables that stand on the pages."""

from __future__ import annotations

import math

import pytest

from benchmarks import tables


def test_ratios_are_taken_within_rounds() -> None:
    seconds = {"base": [1.0, 10.0, 1.0], "fused": [1.2, 10.2, 1.2], "lora": [1.8, 10.8, 1.8]}
    assert tables.ratio(seconds, "fused", "base") == pytest.approx(1.2)
    assert tables.added(seconds, "fused", "lora") == pytest.approx(0.25)
    assert tables.spread(seconds) == pytest.approx(0.8)


def test_added_cost_relative_to_a_side_that_adds_nothing_is_nan() -> None:
    assert math.isnan(tables.added({"base": [1.0], "lora": [1.0], "fused": [2.0]}, "fused", "lora"))


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="layr"):
        tables.fill("<!-- benchmarks:layr -->\n<!-- /benchmarks:layr -->")


def test_the_tables_of_the_page_are_up_to_date() -> None:
    assert not tables.update(check=True)
