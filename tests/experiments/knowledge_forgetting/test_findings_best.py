"""Each figure of the best recipe in docs/experiments.md, on either base model of the tiny scale, is what it should be.

As `test_claims.py`, of which this is the third part.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.experiments.knowledge_forgetting.test_claims import (
    at,
    by_full,
    further_on,
    level,
    over,
    percent,
    point,
    summary,
    treated_alike,
    with_interval,
)
from tests.experiments.knowledge_forgetting.test_findings import at_rate, figures, finding
from tests.experiments.knowledge_forgetting.test_published import RESULTS


def test_the_goal_with_the_best_recipe():
    ours, full, lora = (by_full(arm) for arm in ("loramoe_all", "full", "lora_all"))
    assert figures("tiny", "The goal, by full fine-tuning's one epoch, is reached by LoRAMoE") == [
        *(percent(ours["kept"]["value"]["value"]), *with_interval(ours["downstream"]["value"])),
        *with_interval(full["downstream"]["value"]),
    ]
    assert [one["reached"] for one in (ours, full, lora)] == [True, False, False]
    assert (round(100 * ours["reached_in"]), lora["downstream"]) == (93, None)
    assert not any(goal["reached"] for goal in treated_alike()["goal_alike"])


def test_further_on_and_at_the_tuned_rates_of_the_best_recipe():
    assert figures("tiny", "Further on it keeps what the others lose") == [
        *("70.0", *over(0.7, "lora_all"), *over(0.7, "full")),
        *("80.0", *over(0.8, "full")),
        *("60.0", *with_interval(at(0.6)["differences"]["full"]["loramoe_all"]["value"], sign=-1)),
    ]
    chosen = {one["arm"]: one["point"] for one in treated_alike()["tuned"]}
    assert figures("tiny", "Tuned for the tasks alone") == [
        percent(chosen[arm][name]["value"])
        for arm in ("loramoe_all", "lora_all", "full")
        for name in ("kept", "downstream")
    ]
    assert chosen["full"]["learning_rate"] == max(
        one["learning_rate"] for one in treated_alike()["points"] if one["arm"] == "full"
    )


def reversed_by_seed(arm: str, rate: float) -> list[int]:
    """How much of reversing the best recipe has right, in per cent, least and most of its seeds."""
    files = [RESULTS / f"tiny/{arm}-lr{rate:g}-rows6400-seed{n}-epochs=2-replay=0.5.json" for n in range(3)]
    right = [json.loads(file.read_text(encoding="utf-8"))["accuracy"]["test"]["reversing"] for file in files]
    return [round(100 * share) for share in (min(right), max(right))]


def others_than_reversing(arm: str, rate: float) -> int:
    """What the best recipe learns of the other tasks, in per cent."""
    (found,) = [p for p in treated_alike()["points"] if (p["arm"], p["learning_rate"]) == (arm, rate)]
    tasks = [task for task in summary("tiny")["sets"]["downstream"] if task != "reversing"]
    return round(100 * sum(found["by_set"][task] for task in tasks) / len(tasks))


def kept_at(arm: str, rate: float) -> str:
    (found,) = [p for p in treated_alike()["points"] if (p["arm"], p["learning_rate"]) == (arm, rate)]
    return percent(found["kept"]["value"])


def test_how_much_of_the_best_recipe_is_one_task():
    text = finding("tiny", "Much of the lead over full fine-tuning is one task, reversing").split("learnt wholly")[1]
    ours, full, lora = "loramoe_all", "full", "lora_all"
    assert re.findall(r"\d+(?:\.\d+)?", text) == [
        *(*map(str, reversed_by_seed(ours, 2e-3)), "0.002", *map(str, reversed_by_seed(full, 1.2e-3)), "0.0012"),
        *(str(others_than_reversing(full, 6e-4)), "0.0006", kept_at(full, 6e-4)),
        *(str(others_than_reversing(ours, 2e-3)), "0.002", kept_at(ours, 2e-3)),
        *(str(others_than_reversing(ours, 4e-3)), "0.004", kept_at(ours, 4e-3)),
        *(str(others_than_reversing(lora, 2e-3)), "0.002", kept_at(lora, 2e-3)),
    ]


def test_one_epoch_of_full_fine_tuning_beside_the_goal():
    of_full = [point("tiny_again", "full", rate) for rate in (6e-4, 1.2e-3)]
    best = max(p["downstream"]["value"] for p in summary("tiny_again")["frontier"] if p["arm"] == "full")
    ours = [figure for p in of_full for figure in (percent(p["kept"]["value"]), percent(p["downstream"]["value"]))]
    assert figures("tiny_again", "The goal, by full fine-tuning's one epoch, is reached") == [percent(best), *ours]


def test_further_on():
    assert figures("tiny_again", "Further on LoRAMoE keeps what the others lose, here too") == further_on()


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
