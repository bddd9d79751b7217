"""Each figure of the findings of the real scale in docs/experiments.md is the one that it is said to be.

As `test_findings.py`, which holds those of the tiny scale.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.experiments.knowledge_forgetting.test_claims import (
    Figures,
    level,
    pair,
    percent,
    point,
    shares,
    summary,
    told,
    tuned,
    with_interval,
    with_spread,
)
from tests.experiments.knowledge_forgetting.test_findings import figures
from tests.experiments.knowledge_forgetting.test_published import RESULTS, ROOT


def extremes(points: list[dict[str, Any]], name: str) -> Figures:
    return [percent(of(p[name]["value"] for p in points)) for of in (min, max)]


def test_what_more_rows_do_to_the_real_model():
    points = [p for line in summary("real_float32")["rows_study"] for p in line]
    fewest, most = ([p for p in points if p["rows"] == rows] for rows in (100, 2_000))
    base = summary("real_float32")["base"]["by_set"]
    for name, gained in {"webquestions": (5, 8.5), "trex": (1.7, 3.1), "natural_questions": (0, 3.5)}.items():
        gains = [100 * (p["by_set"][name] - base[name]) for p in most]
        assert (min(gains), max(gains)) == pytest.approx(gained, abs=0.05)
    told_of = figures("real_float32", "Nothing is seen to be forgotten at any of these numbers of rows")
    assert told_of == extremes(points, "kept")
    assert all(p["kept"]["high"] > 1 for p in points)
    assert min(p["kept"]["low"] for p in fewest) > 0.93
    assert min(p["kept"]["low"] for p in most) > 0.98
    more_than_before = [b["kept"]["value"] > a["kept"]["value"] for a, b in zip(fewest, most, strict=True)]
    assert all(more_than_before)
    learnt = figures("real_float32", "All four go on learning")
    assert learnt == [*extremes(fewest, "downstream"), *extremes(most, "downstream")]


def test_all_arms_of_the_real_model_in_one_seed():
    points = {p["arm"]: p for p in summary("real_float32")["frontier"]}
    assert figures("real_float32", "In what is kept no arm stands out") == extremes(list(points.values()), "kept")
    for one in points.values():
        assert all(other["kept"]["low"] < one["kept"]["value"] < other["kept"]["high"] for other in points.values())
    assert figures("real_float32", "The constraint moves the shares") == [
        figure for arm in ("loramoe_free", "loramoe_paper", "loramoe_match") for figure in shares(points[arm])
    ]


def test_the_larger_sets_of_items():
    points, base = summary("real_gpu")["frontier"], summary("real_gpu")["base"]["by_set"]
    lowest = min(p["kept"]["low"] for p in points)
    assert figures("real_gpu", "Every arm answers more than before") == [percent(lowest)]
    assert lowest > 1
    assert max(p["kept"]["value"] - p["kept"]["low"] for p in points) < 0.03
    for name, gained in {"webquestions": (4.4, 6.2), "natural_questions": (3.9, 5.1), "trex": (0.7, 1.5)}.items():
        gains = [100 * (p["by_set"][name] - base[name]) for p in points]
        assert (min(gains), max(gains)) == pytest.approx(gained, abs=0.05)
    less = [
        pair(summary("real_gpu"), than, left_out)["learns_more"]
        for left_out in (None, "reading")
        for than in ("full", "lora_all")
    ]
    assert figures("real_gpu", "Full fine-tuning and LoRA learn more than LoRAMoE") == [
        figure for one in less for figure in with_interval(one, sign=-1)
    ]
    of_shares = [shares(p) for p in points if p["share"]]
    assert [figures("real_gpu", "The constraint is at work")] * 2 == of_shares


def test_how_many_items_the_larger_sets_hold():
    file = RESULTS / "real_gpu/base-lr0-rows0-seed0.json"
    counts = json.loads(file.read_text(encoding="utf-8"))["counts"]["test"]
    knowledge = [counts[name] for name in ("trex", "webquestions", "natural_questions")]
    downstream = sum(counts[name] for name in ("openbookqa", "arc", "gsm8k", "reading"))
    page = " ".join((ROOT / "docs/experiments.md").read_text(encoding="utf-8").split())
    assert f"800 rows, and {sum(knowledge):,} questions of knowledge" in page
    told_of = "{:,} cloze questions of T-REx, {:,} of WebQuestions, {:,} of Natural Questions".format(*knowledge)
    assert f"{told_of}, {downstream:,} downstream and {counts['boolq']:,} of BoolQ" in page


OF_LORAMOE = ("loramoe_free", "loramoe_paper", "loramoe_match", "loramoe_all")
LORA = ("lora_all", "lora_mlp")


def steps_above(steps: int, arm: str) -> dict[str, Any]:
    """An arm of the real model so many rates above its tuned one."""
    rates = {1: (3e-4, 3e-3), 2: (1e-3, 1e-2)}[steps]
    return point("real", arm, rates[0] if arm == "full" else rates[1])


def test_in_how_many_draws_a_level_is_reached():
    over = level("real", "full")["differences"]
    of_draws = [over["lora_mlp"]["loramoe_paper"]["reached"], over["lora_all"]["loramoe_all"]["reached"]]
    least, most = (of(one["reached_in"] for one in summary("real")["goal"]) for of in (min, max))
    page = told("docs/experiments.md", "real")
    assert f"of the {of_draws[0] * 100:.0f} and {of_draws[1] * 100:.0f} % of draws" in page
    assert f"in {least * 100:.0f} to {most * 100:.0f} %\n  of the draws" in page
    assert all(one["reached"] for one in summary("real")["goal"])


def test_one_step_above_the_tuned_rates_of_the_real_model():
    kept = {arm: steps_above(1, arm)["kept"] for arm in ("full", *LORA, *OF_LORAMOE)}
    assert figures("real", "One step above the tuned rate the arms cannot be told apart") == [
        figure for of in kept.values() for figure in with_spread(of)
    ]
    assert max(of["low"] for of in kept.values()) < min(of["high"] for of in kept.values())
    without = kept["loramoe_free"]["by_seed"]
    for arm in ("loramoe_paper", "loramoe_match"):
        assert all(value > without[seed] for seed, value in kept[arm]["by_seed"].items())


def test_what_is_damaged_one_and_two_steps_above():
    of_base = percent(summary("real")["base"]["by_set"]["gsm8k"])
    solved = {arm: steps_above(1, arm)["by_set"]["gsm8k"] for arm in ("full", *LORA, *OF_LORAMOE)}
    assert figures("real", "There GSM8K (asked for its last computation") == [
        *(of_base, percent(solved["full"])),
        *(percent(solved[arm]) for arm in LORA),
        *(percent(of(solved[arm] for arm in OF_LORAMOE)) for of in (min, max)),
    ]
    kept = {arm: steps_above(2, arm)["kept"]["value"] for arm in ("full", *LORA, *OF_LORAMOE)}
    beside_mlp = [kept[arm] for arm in OF_LORAMOE[:3]]
    base = summary("real")["base"]["downstream"]["value"]
    assert figures("real", "Two steps above LoRA loses most") == [
        *(percent(kept[arm]) for arm in LORA),
        *(percent(of(beside_mlp)) for of in (min, max)),
        *(percent(value) for value in (kept["loramoe_all"], kept["full"], base)),
    ]
    assert all(steps_above(2, arm)["downstream"]["high"] < base for arm in kept)


def test_what_the_real_model_learns():
    base, arms = summary("real")["base"]["by_set"], [one["point"]["by_set"] for one in summary("real")["tuned"]]
    assert figures("real", "What is learnt is little") == [
        percent(base["reading"]),
        *(percent(of(sets["reading"] for sets in arms)) for of in (min, max)),
        percent(base["arc"]),
        *(percent(of(sets["arc"] for sets in arms)) for of in (min, max)),
        percent(base["gsm8k"]),
        *(percent(of(sets["gsm8k"] for sets in arms)) for of in (min, max)),
    ]


def test_boolq_counts_in_no_mean():
    commoner = summary("real")["sets"]["chance"]["boolq"]
    arms = [one["arm"] for one in summary("real")["tuned"]]
    sets = {arm: tuned("real", arm)["by_set"] for arm in arms}
    names = ("openbookqa", "arc", "gsm8k", "reading", "boolq")
    means = {arm: sum(of[name] for name in names) / len(names) for arm, of in sets.items()}
    assert (min(means, key=means.__getitem__), max(means, key=means.__getitem__)) == ("full", "loramoe_match")
    assert figures("real", "BoolQ counts in no mean") == [
        percent(commoner),
        percent(1 - commoner),
        percent(means["full"]),
        percent(means["loramoe_match"]),
    ]
