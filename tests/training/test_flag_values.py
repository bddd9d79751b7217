"""Numbers that flags of the commands take, and those that they refuse."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from loramoe.training.flag_values import not_negative, positive


def test_numbers_are_read():
    assert (positive("1"), positive("032")) == (1, 32)
    assert (not_negative("0"), not_negative("1e-3")) == (0.0, 0.001)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "x", "\u00b2"])
def test_what_counts_nothing_is_refused(text: str):
    with pytest.raises(ArgumentTypeError, match=f"expected a whole number of at least 1, got '{text}'. Raise it."):
        positive(text)


@pytest.mark.parametrize("text", ["-0.1", "nan", "inf"])
def test_what_measures_nothing_is_refused(text: str):
    with pytest.raises(ArgumentTypeError, match=f"expected a number of at least 0, got '{text}'. Correct it."):
        not_negative(text)
