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
    lines = compare({"base": {"facts": samples([1, 0, 1], types=[0, 1, 1])}})
    assert [(line["task_type"], line["samples"], line["values"]["base"]["value"]) for line in lines[1:]] == [
        (0, 1, 1.0),
        (1, 2, 0.5),
    ]
    table = markdown(lines, {1: "knowledge"})
    assert [row.split("|")[2].strip() for row in table.splitlines()[2:]] == ["all", "0", "knowledge"]


@pytest.mark.parametrize("figures", [[("a text", "its reference")] * 3, [(0, 1), (1, 1)], ["a", "b"]])
def test_figures_of_a_whole_corpus_are_left_out(figures: list[Any]) -> None:
    assert compare({"base": {"flores": samples(figures, "bleu")}}) == []


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    draws = np.random.default_rng(0).normal(size=400)
    (line,) = compare({"base": {"facts": samples(list(draws))}})
    estimate, error = line["values"]["base"], draws.std() / math.sqrt(400)
    assert (estimate["high"] - estimate["low"]) / 2 == pytest.approx(1.96 * error, rel=0.06)


def test_what_models_share_cancels_in_a_difference() -> None:
    draws = np.random.default_rng(0).normal(size=400)
    (line,) = compare({"base": {"facts": samples(list(draws))}, "one": {"facts": samples(list(draws + 0.01))}})
    low, high = line["differences"]["one"]["low"], line["differences"]["one"]["high"]
    assert (low, high) == (pytest.approx(0.01), pytest.approx(0.01))


def test_a_single_sample_shows_nothing() -> None:
    (line,) = compare({"base": {"facts": samples([1])}})
    assert (line["values"]["base"]["low"], line["values"]["base"]["high"]) == (-math.inf, math.inf)
