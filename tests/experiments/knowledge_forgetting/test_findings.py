"""Each figure of the tiny scale's findings in docs/experiments.md, the lists below the claims, is what it should be.

As `test_claims.py`, of which this is the second part: the figures of a finding, in their order, against `summary.json`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.experiments.knowledge_forgetting.test_claims import (
    SIGNED,
    Figures,
    level,
    percent,
    point,
    summary,
    told,
    tuned,
    with_interval,
)
from tests.experiments.knowledge_forgetting.test_published import RESULTS, ROOT

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
    arms = ("loramoe_all", "lora_all", "full")
    gains = [more("tiny", 0, arm, replay=0.5) for arm in arms]
    (alike,) = [one for one in summary("tiny")["treated"] if one["changes"] == {"replay": 0.5}]
    (replayed,) = [one for one in alike["levels"] if (one["name"], one["downstream"]["value"]) == ("fixed", 0.6)]
    at_60 = [[one["kept"][arm]["value"]["value"] for one in (replayed, level("tiny", "fixed", 0.6))] for arm in arms]
    assert figures("tiny", "At the same rates replayed facts keep more") == [
        *(figure for gain in gains for figure in with_interval(gain)),
        *("60.0", *(percent(share) for of_arm in at_60 for share in of_arm)),
    ]
    assert all(with_them < without for with_them, without in at_60)


def test_more_experts():
    of_lora = summary("tiny")["recipes"][1]["level"]["test"]["value"]
    assert figures("tiny", "Fewer experts keep or learn less") == [
        percent(of_lora),
        *with_interval(more("tiny", 1, lora_nums=4), sign=-1),
        *with_interval(more("tiny", 1, lora_nums=16)),
        *with_interval(more("tiny", 1, r=8)),
    ]
    of_ranks = {r: recipe("tiny", 1, r=r) for r in (1, 4, 8)}
    assert [round(of_ranks[r]["told"]["test"]["kept"]["reached"], 2) for r in (1, 4)] == [0.5, 0.71]
    assert all(more("tiny", 1, r=r)["value"] < 0 for r in (1, 4))
    assert 3 < of_ranks[8]["trainable_parameters"] / recipe("tiny", 1)["trainable_parameters"] < 4
    ablations = [one for one in summary("tiny_again")["ablations"] if one["key"] == "lora_nums"]
    assert [one["learning_rate"] for one in ablations] == [2e-3, 4e-3]
    for of in ablations:
        points = {one["value"]: one["point"] for one in of["settings"]}
        assert all(points[16][name]["value"] < points[8][name]["value"] for name in ("kept", "downstream"))
    assert recipe("tiny", 1, lora_nums=2)["told"]["test"]["most_downstream"] < of_lora


def test_strength_of_the_constraint():
    not_told_apart: tuple[dict[str, Any], ...] = ({"blc_weight": 0.01}, {"blc_alpha": 0.0})
    for changes in not_told_apart:
        assert all(more("tiny", at, **changes)["low"] < 0 < more("tiny", at, **changes)["high"] for at in (0, 1))
    costly: tuple[dict[str, Any], ...] = ({"blc_weight": 1.0}, {"blc_weight": 10.0}, {"blc_alpha": 0.8})
    most = [recipe("tiny", 0, blc_weight=weight)["told"]["test"]["most_downstream"] for weight in (0.0, 0.01, 1.0)]
    assert figures("tiny", "The constraint's strength") == [
        "0.01",
        *with_interval(more("tiny", 0, **costly[0]), sign=-1),
        *with_interval(more("tiny", 0, **costly[1]), sign=-1),
        *("0.8", *with_interval(more("tiny", 0, **costly[2]), sign=-1)),
        *(percent(most[0]), "0.01", percent(most[1]), percent(most[2])),
    ]
    without = more("tiny", 0, blc_weight=0.0)
    assert without["low"] < 0 < without["high"]
    beside_mlp = [tuned("tiny", arm)["downstream"] for arm in ("loramoe_free", "loramoe_paper", "loramoe_match")]
    assert all(one["low"] < beside_mlp[0]["value"] for one in beside_mlp)
    changed = [*not_told_apart, *costly, {"blc_weight": 0.0}, {"lora_nums": 4}, {"lora_nums": 16}, {"r": 8}]
    assert {tuple(recipe("tiny", 0, **changes)["seeds"]) for changes in changed} == {(10, 11)}


def test_what_keeps_no_more_than_the_recipe_it_changes():
    told_of = finding("tiny", "Not told apart from the arm as it is")
    assert SIGNED.findall(told_of) == [percent(-more("tiny", 1, rate_B=4.0)["value"])]
    alike: tuple[dict[str, Any], ...] = ({"lora_dropout": 0.0}, {"blc_target": "match"})
    assert all(more("tiny", 0, **changes)["low"] < 0 < more("tiny", 0, **changes)["high"] for changes in alike)
    less: tuple[dict[str, Any], ...] = ({"zero_experts": 4}, {"router_scale": 0.0}, {"use_rslora": True})
    less += ({"router_rate": 0.25}, {"router_rate": 10.0}, {"router_scale": 4.0})
    most = more("tiny", 0, rate_B=4.0)["value"]
    for changes in less:
        assert more("tiny", 0, **changes)["high"] < 0, changes
        assert most < more("tiny", 0, **changes)["value"], changes
    ranked = [one["changes"] for one in summary("tiny")["recipes"][1]["ranked"]]
    of_one_epoch = [changes for changes in ranked if "epochs" not in changes]
    assert {"replay": 0.5, "router_rate": 0.25} in of_one_epoch[:2]


def test_what_came_near_the_goal_with_two_seeds():
    changes = {"blc_target": "match", "zero_experts": 4}
    of_five = recipe("tiny", 1, **changes)
    assert of_five["seeds"] == [0, 1, 2, 10, 11]
    higher = of_five["at_rates"][-1]
    assert figures("tiny", "Half the experts at zero, and the constraint in the other direction") == [
        *(*with_interval(higher["kept"]), *with_interval(higher["downstream"])),
        *with_interval(more("tiny", 1, **changes)),
    ]
    assert round(of_five["told"]["test"]["more"]["reached"], 2) == 0.59
    files = [
        RESULTS / f"tiny/loramoe_all-lr0.004-rows6400-seed{n}-blc_target=match-zero_experts=4.json" for n in (10, 11)
    ]
    of_two = [json.loads(file.read_text(encoding="utf-8"))["accuracy"]["test"] for file in files]
    for kind, percents in {"knowledge": 98, "downstream": 66}.items():
        names = summary("tiny")["sets"][kind]
        means = [sum(of[name] for name in names) / len(names) for of in of_two]
        assert round(50 * sum(means)) == percents


def test_batches_as_they_come():
    at_level = more("tiny", 0, grouped=False)
    assert at_level["low"] < 0 < at_level["high"]
    (own,) = [
        setting["point"]
        for of in summary("tiny")["ablations"]
        if (of["key"], of["learning_rate"]) == ("grouped", 4e-3)
        for setting in of["settings"]
        if setting["is_own"]
    ]
    assert list(own["kept"]["by_seed"]) == ["10"]
    kept, learnt = at_rate("tiny", 4e-3, grouped=False)
    assert figures("tiny", "Unsorted batches are no worse") == [
        *with_interval(more("tiny", 1, grouped=False)),
        *("0.004", learnt, kept),
    ]
    assert round(float(learnt) - 100 * own["downstream"]["value"]) == 11
    assert round(float(kept) - 100 * own["kept"]["value"]) == -2


def test_how_far_the_two_base_models_are_apart():
    points = {(p["arm"], p["learning_rate"]): p for p in summary("tiny")["frontier"]}
    apart = [
        abs(p["downstream"]["value"] - points[p["arm"], p["learning_rate"]]["downstream"]["value"])
        for p in summary("tiny_again")["frontier"]
    ]
    page = (ROOT / "docs/experiments.md").read_text(encoding="utf-8")
    assert f"between the two by up to {percent(max(apart))} points" in page


def test_no_recipe_of_one_epoch_reaches_the_goal():
    """What is kept at an accuracy is the most at it or above, so that none keeps more at full fine-tuning's."""
    of_lora = summary("tiny")["recipes"][1]
    assert of_lora["level"]["test"]["value"] < level("tiny", "full")["downstream"]["value"]
    once = [one["told"]["test"]["kept"] for one in of_lora["ranked"] if "epochs" not in one["changes"]]
    assert len(once) > 40
    assert all(kept["value"]["value"] < 0.99 for kept in once if kept)
