"""Each figure of README's sentences and of the claims' tables is the one that it is said to be: the tiny scale's.

`test_published.py` asks whether a figure stands anywhere in a scale's tables. Here the figures of a sentence or of a
table's row, in their order, are held to what `summary.json` has of that arm, level and number of rows.
"""

from __future__ import annotations

import json
import re
from functools import cache
from statistics import stdev
from typing import Any

import pytest

from tests.experiments.knowledge_forgetting.test_published import RESULTS, ROOT

SIGNED = re.compile(r"−?\d+\.\d+")
Figures = list[str]


@cache
def summary(scale: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / scale / "summary.json").read_text(encoding="utf-8")))


def told(page: str, scale: str) -> str:
    """All that a page tells of a scale."""
    parts = (ROOT / page).read_text(encoding="utf-8").split(f"<!-- figures:{scale} -->")[1:]
    return "\n\n".join(part.split("<!-- /figures -->")[0] for part in parts)


def claims(scale: str, at: int = 0) -> list[Figures]:
    """The figures of each row of a table in docs/experiments.md, without its head; of several tables the `at`-th."""
    tables = re.findall(r"(?:^\|.*\n)+", told("docs/experiments.md", scale), re.MULTILINE)
    return [SIGNED.findall(row) for row in tables[at].splitlines()[2:]]


def percent(share: float) -> str:
    return f"{100 * share:.1f}".replace("-", "−")


def with_interval(of: dict[str, float], sign: int = 1) -> Figures:
    low, high = sorted((sign * of["low"], sign * of["high"]))
    return [percent(sign * of["value"]), percent(low), percent(high)]


def with_spread(of: dict[str, Any]) -> Figures:
    return [percent(of["value"]), percent(stdev(of["by_seed"].values()))]


def level(scale: str, name: str, downstream: float | None = None) -> dict[str, Any]:
    levels = [one for one in summary(scale)["levels"] if one["name"] == name]
    (found,) = [one for one in levels if downstream is None or one["downstream"]["value"] == downstream]
    return dict(found)


def more_beside(downstream: float, than: str, arm: str) -> Figures:
    """By how much more one adapter keeps than another beside the same linears, at an accuracy that both reach."""
    levels = [one for group in summary("tiny")["alike"] for one in group if {than, arm} <= one["kept"].keys()]
    (found,) = [one for one in levels if one["downstream"]["value"] == downstream]
    return with_interval(found["differences"][than][arm]["value"])


def shared_levels(than: str) -> list[dict[str, Any]]:
    """The accuracies that this adapter and the others beside its linears reach."""
    return [level for group in summary("tiny")["alike"] for level in group if than in level["kept"]]


def kept(scale: str, name: str, arm: str) -> Figures:
    """What an arm keeps at the level of another."""
    return with_interval(level(scale, name)["kept"][arm]["value"])


def tuned(scale: str, arm: str) -> dict[str, Any]:
    (found,) = [one["point"] for one in summary(scale)["tuned"] if one["arm"] == arm]
    return dict(found)


def point(scale: str, arm: str, rate: float) -> dict[str, Any]:
    (found,) = [p for p in summary(scale)["frontier"] if (p["arm"], p["learning_rate"]) == (arm, rate)]
    return dict(found)


def of_rows(arm: str, rows: int) -> dict[str, Any]:
    (found,) = [p for line in summary("tiny")["rows_study"] for p in line if (p["arm"], p["rows"]) == (arm, rows)]
    return dict(found)


def shares(of: dict[str, Any]) -> Figures:
    return [f"{share:.2f}" for task_type in ("0", "1") for share in of["share"][task_type]]


def variations(arm: str) -> Figures:
    values = [p["variation"]["value"] for p in summary("tiny")["frontier"] if p["arm"] == arm]
    return [f"{min(values):.2f}", f"{max(values):.2f}"]


def downstream(scale: str, *arms: str) -> Figures:
    return [figure for arm in arms for figure in with_interval(tuned(scale, arm)["downstream"])]


def of_the_constraint(*levels: float) -> Figures:
    told_at = [(more_beside(of, "loramoe_free", "loramoe_paper"), percent(of)) for of in levels]
    return [figure for more, of in told_at for figure in (*more, of)]


def against_lora() -> Figures:
    pairs = [(of, "lora_mlp", "loramoe_paper") for of in (0.52, 0.53, 0.54)]
    pairs += [(of, "lora_all", "loramoe_all") for of in (0.56, 0.6)]
    return [figure for pair in pairs for figure in (*more_beside(*pair), percent(pair[0]))]


def at_the_highest_rate() -> Figures:
    arms = ("loramoe_paper", "loramoe_match", "loramoe_free")
    return [percent(point("tiny", arm, 8e-3)["kept"]["value"]) for arm in arms]


def where_less_is_learnt() -> Figures:
    of_level = level("tiny", "fixed", 0.55)["kept"]
    assert of_level["full"]["is_bound"]
    return ["55.0", *(percent(of_level[arm]["value"]["value"]) for arm in ("full", "loramoe_all"))]


def at_full_level() -> Figures:
    tuned_full = percent(level("tiny", "full")["downstream"]["value"])
    return [tuned_full, *kept("tiny", "full", "loramoe_all"), *kept("tiny", "full", "full")]


def over_lora() -> Figures:
    more = level("tiny", "lora_all")["differences"]["lora_all"]["loramoe_all"]["value"]
    return [percent(level("tiny", "lora_all")["downstream"]["value"]), *with_interval(more)]


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_readme_tells_of_the_tiny_scale_what_was_measured(page: str):
    level_of_lora, *more_than_lora = over_lora()
    beside_mlp = [more_beside(0.53, than, "loramoe_paper") for than in ("lora_mlp", "loramoe_free")]
    assert SIGNED.findall(told(page, "tiny")) == [
        *(*more_than_lora, level_of_lora),
        *(*beside_mlp[0], "53.0", *beside_mlp[1]),
        *at_full_level(),
        *(
            figure
            for arm in ("loramoe_all", "full", "lora_all")
            for figure in with_interval(by_full(arm)["kept"]["value"])
        ),
        *("70.0", *over(0.7, "full"), *over(0.7, "lora_all")),
    ]


def test_lora_keeps_less_than_loramoe_wherever_both_get():
    groups = [(than, level["differences"][than]) for than in ("lora_mlp", "lora_all") for level in shared_levels(than)]
    assert len(groups) == 4 + 3
    for than, more in groups:
        assert all(one["value"]["value"] > 0 for arm, one in more.items() if arm != than)
        assert all(one["value"]["low"] > 0 or one["reached"] < 0.9 for one in more.values())


def test_each_claim_at_the_tiny_scale_has_its_own_figures():
    more_rows = [
        [
            *(percent(of_rows(arm, rows)["kept"]["value"]) for rows in (640, 6_400)),
            *with_interval(of_rows(arm, 20_000)["kept"]),
        ]
        for arm in ("full", "lora_all")
    ]
    learnt = [percent(of_rows(arm, 20_000)["downstream"]["value"]) for arm in ("loramoe_all", "full", "lora_all")]
    paper = of_rows("loramoe_paper", 20_000)
    assert claims("tiny") == [
        [*more_rows[0], *more_rows[1]],
        [
            *with_interval(of_rows("loramoe_all", 20_000)["kept"]),
            *learnt,
            *with_interval(paper["kept"]),
            percent(paper["downstream"]["value"]),
        ],
        [*at_full_level(), *over_lora(), *where_less_is_learnt()],
        against_lora(),
        downstream("tiny", "loramoe_paper", "lora_mlp", "loramoe_all", "lora_all", "full"),
        [*of_the_constraint(0.52, 0.53, 0.54), *at_the_highest_rate()],
        [*shares(tuned("tiny", "loramoe_paper")), *shares(tuned("tiny", "loramoe_free"))],
        [*variations("loramoe_free"), *variations("loramoe_paper")],
    ]


BEST = {"epochs": 2, "replay": 0.5}
TREATED_ALIKE = ("loramoe_all", "lora_all", "full")


def treated_alike(scale: str = "tiny") -> dict[str, Any]:
    """The arms with the best recipe, compared with each other."""
    (found,) = [one for one in summary(scale)["treated"] if one["changes"] == BEST]
    return dict(found)


def by_full(arm: str) -> dict[str, Any]:
    """How near an arm with the best recipe comes to the goal, by full fine-tuning in one epoch."""
    (found,) = [goal for goal in treated_alike()["goal"] if goal["arm"] == arm]
    return dict(found)


def at(downstream: float) -> dict[str, Any]:
    """The arms with the best recipe at an accuracy."""
    fixed = [one for one in treated_alike()["levels"] if one["name"] == "fixed"]
    (found,) = [one for one in fixed if one["downstream"]["value"] == downstream]
    return dict(found)


def over(downstream: float, than: str) -> Figures:
    """By how much more LoRAMoE keeps than another arm, with the best recipe."""
    return with_interval(at(downstream)["differences"][than]["loramoe_all"]["value"])


def test_the_best_recipe_is_read_where_full_fine_tuning_gets_in_one_epoch_and_further_on():
    head = told("docs/experiments.md", "tiny").split("| kept, in two epochs with replayed facts")[1].splitlines()[0]
    assert SIGNED.findall(head) == [percent(level("tiny", "full")["downstream"]["value"]), "60.0", "70.0", "80.0"]
    rows = []
    for arm in TREATED_ALIKE:
        readings = [by_full(arm)["kept"], *(at(downstream)["kept"][arm] for downstream in (0.6, 0.7, 0.8))]
        rows.append([figure for reading in readings if reading for figure in with_interval(reading["value"])])
    assert claims("tiny", 1) == rows
    assert [len(row) for row in rows] == [12, 9, 12]  # LoRA does not get to 80 %


def recipe(level: dict[str, Any], arm: str) -> dict[str, Any]:
    (found,) = [one for one in level["ranked"] if (one["arm"], one["changes"]) == (arm, BEST)]
    return dict(found)


def test_the_best_recipe_has_at_each_rate_its_own_figures():
    of_level = summary("tiny_again")["recipes"][0]
    at_rates = [at for arm in TREATED_ALIKE for at in recipe(of_level, arm)["at_rates"]]
    assert claims("tiny_again") == [
        [f"{at['learning_rate']:g}", *with_interval(at["kept"]), *with_interval(at["downstream"])] for at in at_rates
    ]


def further_on() -> Figures:
    """The highest level that the best recipe is read at on the second base, and what the arms with it keep there."""
    of_level = summary("tiny_again")["recipes"][-1]
    assert of_level["changes"] == BEST
    kept_there = [recipe(of_level, arm)["told"]["test"]["kept"]["value"] for arm in ("loramoe_all", "full", "lora_all")]
    return [
        percent(of_level["level"]["test"]["value"]),
        *(figure for of in kept_there for figure in with_interval(of)),
    ]
