"""Figures from lm-eval's logged samples, and paired differences between models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from loramoe.evaluation.statistics import compare, markdown

pytest.importorskip("scipy", reason="scipy comes with lm-eval")


def samples(figures: list[Any], metric: str = "acc", types: list[int | None] | None = None) -> list[dict[str, Any]]:
    kinds = types or [None] * len(figures)
    return [
        {"doc_id": n, "filter": "none", "metrics": [metric], metric: one, "doc": {"task_type": kind}}
        for n, (one, kind) in enumerate(zip(figures, kinds, strict=True))
    ]


def test_a_mean_and_its_difference_whatever_the_order_of_the_samples() -> None:
    (line,) = compare({"base": {"facts": samples([0, 0, 1, 1])}, "one": {"facts": samples([0, 1, 1, 1])[::-1]}})
    assert (line["task"], line["task_type"], line["metric"], line["samples"]) == ("facts", None, "acc", 4)
    assert {name: one["value"] for name, one in line["values"].items()} == {"base": 0.5, "one": 0.75}
    assert {name: one["value"] for name, one in line["differences"].items()} == {"one": 0.25}


def test_a_perplexity_counts_tokens_if_there_are_any() -> None:
    (line,) = compare({"base": {"lambada": samples([-2.0, -1.0], "perplexity")}})
    assert line["values"]["base"]["value"] == pytest.approx(math.exp(1.5))
    base, one = samples([(-2.0, 1), (-1.0, 4)], "perplexity"), samples([(-1.0, 1), (-1.0, 4)], "perplexity")
    (line,) = compare({"base": {"facts": base}, "one": {"facts": one}})
    assert line["values"]["base"]["value"] == pytest.approx(math.exp(3 / 5))
    assert line["differences"]["one"]["value"] == pytest.approx(math.exp(2 / 5) - math.exp(3 / 5))


def test_types_have_lines_of_their_own_and_names() -> None:
    lines = compare({"base": {"z": samples([1, 0, 1], types=[1, 0, 1]), "a": samples([1, 1], types=[0, 0])}})
    found = [(line["task"], line["task_type"], line["samples"], line["values"]["base"]["value"]) for line in lines]
    assert found == [("z", None, 3, pytest.approx(2 / 3)), ("z", 0, 1, 0.0), ("z", 1, 2, 1.0), ("a", None, 2, 1.0)]
    interval = lines[1]["values"]["base"]
    assert (interval["low"], interval["high"]) == (-math.inf, math.inf)  # a single sample shows nothing
    table = markdown(lines, {1: "knowledge"})
    assert [row.split("|")[2].strip() for row in table.splitlines()[2:]] == ["all", "0", "knowledge", "all"]


@pytest.mark.parametrize("figures", [[(0, 1), (1, 1)], ["a", "b"]])
def test_figures_of_a_whole_corpus_are_left_out(figures: list[Any]) -> None:
    assert compare({"base": {"flores": samples(figures, "bleu")}}) == []


def test_intervals_are_those_of_the_standard_error_and_what_models_share_cancels() -> None:
    draws = np.random.default_rng(0).normal(size=400)
    (line,) = compare({"base": {"facts": samples(list(draws))}, "one": {"facts": samples(list(draws + 0.01))}})
    estimate, error = line["values"]["base"], draws.std() / math.sqrt(400)
    assert (estimate["high"] - estimate["low"]) / 2 == pytest.approx(1.96 * error, rel=0.06)
    difference = line["differences"]["one"]
    assert (difference["low"], difference["high"]) == (pytest.approx(0.01), pytest.approx(0.01))
