"""Each figure of the findings in docs/experiments.md, its lists below the claims, is the one that it is said to be.

As `test_claims.py`, of which this is the second part: the figures of a finding, in their order, against `summary.json`.
"""

from __future__ import annotations

import json
import re
from statistics import stdev
from typing import Any

from tests.experiments.knowledge_forgetting.test_claims import (
    SIGNED,
    Figures,
    further_on,
    level,
    percent,
    point,
    shares,
    summary,
    told,
    tuned,
    with_interval,
)
from tests.experiments.knowledge_forgetting.test_published import RESULTS

EQUAL_GATES = {"blc_weight": 0.0, "router_rate": 0.0, "router_scale": 0.0}
STRONG = {"blc_alpha": 0.8, "blc_target": "match", "blc_weight": 1.0}


def finding(scale: str, begins: str) -> str:
    """The one point of a scale's lists that begins so."""
    points = re.split(r"\n(?=- )", told("docs/experiments.md", scale).replace("**", ""))
    (found,) = [one for one in points if one.startswith(f"- {begins}")]
    return found.split("\n\n")[0]


def figures(scale: str, begins: str) -> Figures:
    return SIGNED.findall(finding(scale, begins))


def recipe(scale: str, at: int, arm: str = "loramoe_all", **changes: Any) -> dict[str, Any]:
    """A recipe as it is ranked at one of the scale's levels."""
    (found,) = [
        one for one in summary(scale)["recipes"][at]["ranked"] if (one["arm"], one["changes"]) == (arm, changes)
    ]
    return dict(found)


def more(scale: str, at: int, arm: str = "loramoe_all", split: str = "test", **changes: Any) -> dict[str, float]:
    """By how much more a recipe keeps than its arm."""
    return dict(recipe(scale, at, arm, **changes)["told"][split]["more"]["value"])


def kept_by(scale: str, at: int, **changes: Any) -> float:
    return float(recipe(scale, at, **changes)["told"]["test"]["kept"]["value"]["value"])


def kept_at_half(arm: str) -> float:
    return float(level("tiny", "fixed", 0.5)["kept"][arm]["value"]["value"])


def shares_of_questions(**changes: Any) -> list[float]:
    """What the first group has of rows of type 1, in both runs of seed 10 with these changes at the middle rates."""
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((RESULTS / "tiny").glob("*-seed10-*.json"))]
    found = [
        run["routing"]["share"]["1"][0]
        for run in runs
        if (run["settings"]["arm"], run["settings"]["changes"]) == ("loramoe_all", changes)
        and run["settings"]["learning_rate"] < 8e-3
    ]
    assert len(found) == 2
    return found


def at_rate(scale: str, rate: float, arm: str = "loramoe_all", **changes: Any) -> Figures:
    """What a recipe keeps and learns at one learning rate."""
    (found,) = [one for one in recipe(scale, 0, arm, **changes)["at_rates"] if one["learning_rate"] == rate]
    return [percent(found["kept"]["value"]), percent(found["downstream"]["value"])]


def test_the_router_and_where_the_experts_stand():
    assert figures("tiny", "The router does something.") == [
        *with_interval(more("tiny", 0, **EQUAL_GATES), sign=-1),
        *with_interval(more("tiny", 1, split="validation", **EQUAL_GATES), sign=-1),
        percent(-more("tiny", 0, blc_weight=0.0)["value"]),
    ]
    at_lora = [recipe("tiny", 1, **of)["told"]["test"]["kept"] for of in (EQUAL_GATES, {"blc_weight": 0.0})]
    assert at_lora == [None, None]  # not reached
    assert figures("tiny", "Where the experts stand decides how much is learnt.") == [
        percent(kept_at_half("loramoe_paper")),
        "50.0",
        percent(kept_at_half("loramoe_all")),
        percent(point("tiny", "loramoe_all", 1e-3)["downstream"]["value"]),
    ]


def test_a_strong_constraint():
    assert figures("tiny", "A strong constraint does harm") == [
        "0.8",
        percent(kept_by("tiny", 0, **STRONG)),
        percent(kept_by("tiny", 0, **STRONG, zero_experts=4, detached=True)),
    ]
    assert all(0.15 < share < 0.2 for share in shares_of_questions(**STRONG, zero_experts=4))
    assert all(0.4 < share < 0.6 for share in shares_of_questions(**STRONG, zero_experts=4, detached=True))
    unlearnt = recipe("tiny", 0, **STRONG, zero_experts=4)["told"]["test"]
    assert unlearnt["most_downstream"] < summary("tiny")["recipes"][0]["level"]["test"]["value"]


def test_replay():
    gains = [more("tiny", 0, arm, replay=0.5) for arm in ("loramoe_all", "lora_all", "full")]
    most = recipe("tiny", 1, replay=0.5)["told"]["test"]["most_downstream"]
    assert figures("tiny", "Replayed facts help the three arms") == [
        *(figure for gain in gains for figure in with_interval(gain)),
        percent(most),
    ]
    assert most < summary("tiny")["recipes"][1]["level"]["test"]["value"]


def test_more_experts():
    of_lora = summary("tiny")["recipes"][1]["level"]["test"]["value"]
    assert figures("tiny", "Fewer experts keep or learn less") == [
        percent(of_lora),
        percent(-more("tiny", 1, lora_nums=4)["value"]),
        percent(more("tiny", 1, lora_nums=16)["value"]),
    ]
    assert percent(more("tiny", 0, lora_nums=16)["value"]) == "−0.5"
    assert [recipe("tiny", 1, r=r)["told"]["test"]["kept"] is None for r in (1, 4, 8)] == [True, True, False]
    ablations = [one for one in summary("tiny_again")["ablations"] if one["key"] == "lora_nums"]
    assert [one["learning_rate"] for one in ablations] == [2e-3, 4e-3]
    for of in ablations:
        points = {one["value"]: one["point"] for one in of["settings"]}
        assert all(points[16][name]["value"] < points[8][name]["value"] for name in ("kept", "downstream"))
    assert recipe("tiny", 1, lora_nums=2)["told"]["test"]["most_downstream"] < of_lora


def test_strength_of_the_constraint():
    gain = {weight: more("tiny", 0, blc_weight=weight) for weight in (0.01, 10.0)}
    assert gain[0.01]["value"] > 0 > gain[10.0]["high"]
    assert more("tiny", 1, blc_weight=0.01)["low"] > 0
    assert more("tiny", 0, blc_alpha=0.8)["high"] < 0
    assert more("tiny", 0, blc_alpha=0.0)["high"] > 0
    assert more("tiny", 1, blc_alpha=0.0)["low"] > 0


def test_what_keeps_no_more_than_the_recipe_it_changes():
    told_of = finding("tiny", "Not told apart from the arm as it is")
    assert SIGNED.findall(told_of) == [percent(-more("tiny", 1, rate_B=4.0)["value"])]
    alike: tuple[dict[str, Any], ...] = ({"lora_dropout": 0.0}, {"blc_target": "match"}, {"grouped": False})
    assert all(more("tiny", 0, **changes)["low"] < 0 < more("tiny", 0, **changes)["high"] for changes in alike)
    less: tuple[dict[str, Any], ...] = ({"zero_experts": 4}, {"router_scale": 0.0}, {"use_rslora": True})
    less += ({"router_rate": 0.25}, {"router_rate": 10.0}, {"router_scale": 4.0})
    most = more("tiny", 0, rate_B=4.0)["value"]
    for changes in less:
        assert more("tiny", 0, **changes)["high"] < 0, changes
        assert most < more("tiny", 0, **changes)["value"], changes
    ranked = summary("tiny")["recipes"][1]["ranked"]
    assert {"replay": 0.5, "router_rate": 0.25} in [one["changes"] for one in ranked[:2]]


def test_one_epoch_of_full_fine_tuning_beside_the_goal():
    of_full = [point("tiny_again", "full", rate) for rate in (6e-4, 1.2e-3)]
    best = max(p["downstream"]["value"] for p in summary("tiny_again")["frontier"] if p["arm"] == "full")
    ours = [figure for p in of_full for figure in (percent(p["kept"]["value"]), percent(p["downstream"]["value"]))]
    assert figures("tiny_again", "The goal, by full fine-tuning's one epoch, is reached") == [percent(best), *ours]


def test_further_on():
    assert figures("tiny_again", "Further on, LoRAMoE keeps what the others lose") == further_on()


def test_it_takes_both():
    changes: tuple[dict[str, Any], ...] = ({"epochs": 2}, {"epochs": 3, "replay": 0.5})
    assert figures("tiny_again", "It seems to take both") == [
        figure for of in changes for rate in (1e-3, 2e-3) for figure in at_rate("tiny_again", rate, **of)
    ]


def test_one_epoch_on_another_base_model():
    lower, higher = (level("tiny_again", "fixed", downstream) for downstream in (0.6, 0.65))
    arms = ("loramoe_all", "full", "lora_all")
    less = [with_interval(of["differences"]["lora_all"]["loramoe_all"]["value"]) for of in (lower, higher)]
    assert figures("tiny_again", "One epoch again") == [
        "60.0",
        *(figure for arm in arms for figure in with_interval(lower["kept"][arm]["value"])),
        *less[0],
        "65.0",
        *(percent(higher["kept"][arm]["value"]["value"]) for arm in arms),
        *less[1],
    ]


def test_thirty_two_experts():
    assert figures("tiny_again", "More experts alone do not get there") == [
        *at_rate("tiny_again", 4e-3, lora_nums=32),
        *at_rate("tiny_again", 2e-3, "lora_all", r=84, lora_alpha=168),
    ]


def extremes(points: list[dict[str, Any]], name: str) -> Figures:
    return [percent(of(p[name]["value"] for p in points)) for of in (min, max)]


def test_what_more_rows_do_to_the_real_model():
    points = [p for line in summary("real_float32")["rows_study"] for p in line]
    fewest, most = ([p for p in points if p["rows"] == rows] for rows in (100, 2_000))
    base = summary("real_float32")["base"]["by_set"]
    of_sets = [
        percent(value)
        for name in ("webquestions", "trex")
        for value in (base[name], *(of(p["by_set"][name] for p in most) for of in (min, max)))
    ]
    told_of = figures("real_float32", "Nothing is seen to be forgotten at any of these numbers of rows")
    assert told_of == [*extremes(points, "kept"), *of_sets]
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


OF_LORAMOE = ("loramoe_free", "loramoe_paper", "loramoe_match", "loramoe_all")
LORA = ("lora_all", "lora_mlp")


def steps_above(steps: int, arm: str) -> dict[str, Any]:
    """An arm of the real model so many rates above its tuned one."""
    rates = {1: (3e-4, 3e-3), 2: (1e-3, 1e-2)}[steps]
    return point("real", arm, rates[0] if arm == "full" else rates[1])


def test_one_step_above_the_tuned_rates_of_the_real_model():
    kept = {arm: steps_above(1, arm)["kept"] for arm in ("full", *LORA, *OF_LORAMOE)}
    assert figures("real", "One step above the tuned rate the arms cannot be told apart") == [
        figure for of in kept.values() for figure in (percent(of["value"]), percent(stdev(of["by_seed"].values())))
    ]
    assert max(of["low"] for of in kept.values()) < min(of["high"] for of in kept.values())
    without = kept["loramoe_free"]["by_seed"]
    for arm in ("loramoe_paper", "loramoe_match"):
        assert all(value > without[seed] for seed, value in kept[arm]["by_seed"].items())


def test_what_is_damaged_one_and_two_steps_above():
    of_base = percent(summary("real")["base"]["by_set"]["gsm8k"])
    solved = {arm: steps_above(1, arm)["by_set"]["gsm8k"] for arm in ("full", *LORA, *OF_LORAMOE)}
    assert figures("real", "There GSM8K is damaged before knowledge is") == [
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
