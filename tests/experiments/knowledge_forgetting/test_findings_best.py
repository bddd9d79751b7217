"""Each figure of the best recipe in docs/experiments.md, on either base model of the tiny scale, is what it should be.

As `test_claims.py`, of which this is the third part.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.experiments.knowledge_forgetting.test_claims import (
    SIGNED,
    Figures,
    at,
    by_full,
    least_kept_more,
    level,
    more_kept,
    pair,
    percent,
    point,
    summary,
    treated_alike,
    with_interval,
    with_spread,
)
from tests.experiments.knowledge_forgetting.test_findings import at_rate, figures, finding
from tests.experiments.knowledge_forgetting.test_published import RESULTS


def at_the_rate(arm: str, rate: float) -> dict[str, Any]:
    (found,) = [p for p in treated_alike()["points"] if (p["arm"], p["learning_rate"]) == (arm, rate)]
    return dict(found)


def kept_and_learnt(of: dict[str, Any]) -> Figures:
    return [percent(of["kept"]["value"]), percent(of["downstream"]["value"])]


def test_the_goal_with_the_best_recipe():
    ours, full, lora = (by_full(arm) for arm in ("loramoe_all", "full", "lora_all"))
    below, above = (at_the_rate("loramoe_all", rate) for rate in (1e-3, 2e-3))
    assert figures("tiny", "The goal, by full fine-tuning's one epoch, is reached by LoRAMoE alone") == [
        *("0.001", *kept_and_learnt(below), "0.002", *kept_and_learnt(above)),
        *(*with_interval(full["downstream"]["value"]), *with_interval(full["behind"]["value"], sign=-1)),
        *with_spread(at_the_rate("lora_all", 5e-4)["kept"]),
    ]
    assert below["downstream"]["value"] < at("unchanged")["downstream"]["value"]
    assert max(above["kept"]["value"], at_the_rate("lora_all", 5e-4)["kept"]["value"]) < 0.99
    assert [one["reached"] for one in (ours, full, lora)] == [True, False, False]
    assert (round(100 * ours["reached_in"]), lora["downstream"]) == (93, None)


def test_at_the_accuracy_of_two_epochs_of_full_fine_tuning():
    assert not any(goal["reached"] for goal in treated_alike()["goal_alike"])
    chosen = {one["arm"]: one["point"] for one in treated_alike()["tuned"]}
    assert figures("tiny", "At the accuracy of full fine-tuning's own two epochs") == [
        figure for arm in ("loramoe_all", "lora_all", "full") for figure in kept_and_learnt(chosen[arm])
    ]
    of_full = [one["learning_rate"] for one in treated_alike()["points"] if one["arm"] == "full"]
    assert chosen["full"]["learning_rate"] == max(of_full)


def reversed_by_seed(arm: str, rate: float) -> list[str]:
    """How much of reversing the best recipe has right, in per cent, least and most of its seeds."""
    files = [RESULTS / f"tiny/{arm}-lr{rate:g}-rows6400-seed{n}-epochs=2-replay=0.5.json" for n in range(3)]
    right = [json.loads(file.read_text(encoding="utf-8"))["accuracy"]["test"]["reversing"] for file in files]
    return [f"{100 * share:.0f}" for share in (min(right), max(right))]


def test_how_much_of_the_best_recipe_is_one_task():
    least, of_full = least_kept_more(treated_alike(), "lora_all"), pair(treated_alike(), "full", "reversing")
    told_of, of_seeds = finding("tiny", "The lead over LoRA hangs on no task").split("of the seeds of one")
    assert SIGNED.findall(told_of) == [
        *(*more_kept(least), *more_kept(of_full, sign=-1), *with_interval(of_full["learns_more"], sign=-1)),
    ]
    holds = {(one["than"], one["left_out"]): one["keeps_more"]["value"]["low"] > 0 for one in treated_alike()["pairs"]}
    assert [of for of, is_sure in holds.items() if not is_sure] == [("full", "reversing")]
    assert re.findall(r"\d+(?:\.\d+)?", of_seeds) == [
        *(*reversed_by_seed("loramoe_all", 2e-3), "0.002", *reversed_by_seed("full", 1.2e-3), "0.0012"),
    ]


def test_one_epoch_of_full_fine_tuning_beside_the_goal():
    of_full = [point("tiny_again", "full", rate) for rate in (6e-4, 1.2e-3)]
    best = max(p["downstream"]["value"] for p in summary("tiny_again")["frontier"] if p["arm"] == "full")
    ours = [figure for p in of_full for figure in (percent(p["kept"]["value"]), percent(p["downstream"]["value"]))]
    assert figures("tiny_again", "The goal, by full fine-tuning's one epoch, is reached") == [percent(best), *ours]


def test_further_on_on_the_second_base():
    alike = treated_alike("tiny_again")
    of_all = [pair(alike, than) for than in ("lora_all", "full")]
    chosen = {one["arm"]: one["point"] for one in alike["tuned"]}["loramoe_all"]
    assert figures("tiny_again", "Further on LoRAMoE keeps more than either") == [
        *(percent(chosen["downstream"]["value"]), *more_kept(of_all[0]), *more_kept(of_all[1])),
        *(*more_kept(least_kept_more(alike, "lora_all")), *more_kept(least_kept_more(alike, "full"))),
        *with_interval(of_all[1]["learns_more"], sign=-1),
    ]
    assert [least_kept_more(alike, than)["left_out"] for than in ("lora_all", "full")] == ["reading", "reversing"]
    assert all(least_kept_more(alike, than)["keeps_more"]["value"]["low"] > 0 for than in ("lora_all", "full"))


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
        *more_kept(pair(summary("tiny_again"), "lora_all")),
        *more_kept(pair(summary("tiny_again"), "full", "reversing"), sign=-1),
    ]


def test_thirty_two_experts():
    assert figures("tiny_again", "More experts alone do not get there") == [
        *at_rate("tiny_again", 4e-3, lora_nums=32),
        *at_rate("tiny_again", 2e-3, "lora_all", r=84, lora_alpha=168),
    ]
