"""Rows that are gone through several times are the same rows, each as often."""

from __future__ import annotations

from collections import Counter
from typing import Any

from experiments.knowledge_forgetting.scale import gone_through
from tests.experiments.knowledge_forgetting.made_up import MadeUpScale


class NumberedScale(MadeUpScale):
    """One whose rows can be told from each other."""

    def train_rows(self, count: int, seed: int, replay: float = 0.0) -> list[Any]:
        return [(number, replay) for number in range(count)]


def test_once_is_as_it_was():
    assert gone_through(NumberedScale(), 1).train_rows(9, 0, 0.5) == NumberedScale().train_rows(9, 0, 0.5)


def test_more_epochs_have_each_row_as_often_in_another_order():
    scale = NumberedScale()
    once, thrice = scale.train_rows(9, 0), gone_through(scale, 3).train_rows(9, 0)
    epochs = [thrice[start : start + 9] for start in (0, 9, 18)]
    assert epochs[0] == once
    assert all(Counter(epoch) == Counter(once) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert scale.train_rows(9, 0) == once


def test_the_same_seed_has_the_same_order_and_another_one_another():
    scale = gone_through(NumberedScale(), 2)
    assert scale.train_rows(9, 0) == scale.train_rows(9, 0) != scale.train_rows(9, 1)
