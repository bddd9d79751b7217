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


def claim(begins: str) -> str:
    """The row of the table of the tiny scale's claims that begins so."""
    (found,) = [row for row in told("docs/experiments.md", "tiny").splitlines() if row.startswith(f"| {begins}")]
    return found


def others_than_reversing(of: dict[str, Any]) -> int:
    """What a point has learnt of the other tasks of the tiny scale, in per cent."""
    tasks = [task for task in summary("tiny")["sets"]["downstream"] if task != "reversing"]
    return round(100 * sum(of["by_set"][task] for task in tasks) / len(tasks))


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


def more_than_full_at_its_level() -> Figures:
    return with_interval(level("tiny", "full")["differences"]["full"]["loramoe_all"]["value"])


def learnt_more_by_loramoe() -> Figures:
    """Than LoRA and full fine-tuning, each at its tuned rate; and the same without reversing."""
    compared = [(than, left_out) for left_out in (None, "reversing") for than in ("lora_all", "full")]
    more = [pair(summary("tiny"), *of)["learns_more"] for of in compared]
    signs = (1, 1, 1, -1)  # the last is told as less
    return [figure for one, sign in zip(more, signs, strict=True) for figure in with_interval(one, sign)]


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
        *with_interval(by_full("loramoe_all")["kept"]["value"]),
        *(*over("unchanged", "lora_all"), *over("unchanged", "full")),
        *("70.0", *over(0.7, "lora_all"), *over(0.7, "full")),
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
    most_rows = claim("LoRAMoE keeps it as the data grow")
    assert [int(of) for of in re.findall(r"(\d+) %[,)]", most_rows.split("besides reversing")[1])] == [
        others_than_reversing(of_rows(arm, 20_000)) for arm in ("full", "loramoe_all", "lora_all")
    ]
    assert claims("tiny") == [
        [*more_rows[0], *more_rows[1]],
        [
            *with_interval(of_rows("loramoe_all", 20_000)["kept"]),
            *learnt,
            *with_interval(paper["kept"]),
            percent(paper["downstream"]["value"]),
        ],
        [
            *(*at_full_level(), *more_than_full_at_its_level(), *over_lora()),
            *(
                *more_kept(least_kept_more(summary("tiny"), "full")),
                *more_kept(least_kept_more(summary("tiny"), "lora_all")),
            ),
            *where_less_is_learnt(),
        ],
        against_lora(),
        [*downstream("tiny", "loramoe_paper", "lora_mlp", "loramoe_all"), *learnt_more_by_loramoe()],
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


def at(where: float | str) -> dict[str, Any]:
    """The arms with the best recipe at an accuracy, or at the level of a name."""
    levels = treated_alike()["levels"]
    (found,) = [one for one in levels if where in (one["name"], one["downstream"]["value"])]
    return dict(found)


def over(where: float | str, than: str) -> Figures:
    """By how much more LoRAMoE keeps than another arm, with the best recipe."""
    return with_interval(at(where)["differences"][than]["loramoe_all"]["value"])


def pair(of: dict[str, Any], than: str, left_out: str | None = None, arm: str = "loramoe_all") -> dict[str, Any]:
    """Two arms of a scale, or of `treated_alike`, at the tuned accuracy of the one that learns less."""
    (found,) = [p for p in of["pairs"] if (p["than"], p["arm"], p["left_out"]) == (than, arm, left_out)]
    return dict(found)


def least_kept_more(of: dict[str, Any], than: str) -> dict[str, Any]:
    """Of all tasks that may be left out, the one without which LoRAMoE keeps least more than another arm."""
    pairs = [pair(of, than, left_out) for left_out in (None, *summary("tiny")["sets"]["downstream"])]
    return min(pairs, key=lambda one: one["keeps_more"]["value"]["value"])


def more_kept(of: dict[str, Any], sign: int = 1) -> Figures:
    return with_interval(of["keeps_more"]["value"], sign)


def test_with_each_task_left_out_loramoe_keeps_more_on_every_linear_in_one_epoch():
    of_all = [one for one in summary("tiny")["pairs"] if one["arm"] == "loramoe_all"]
    assert len(of_all) == 2 * (1 + len(summary("tiny")["sets"]["downstream"]))
    assert all(one["keeps_more"]["value"]["low"] > 0 for one in of_all)


def test_the_best_recipe_is_read_where_full_fine_tuning_gets_in_one_epoch_and_around_it():
    head = told("docs/experiments.md", "tiny").split("| kept, in two epochs with replayed facts")[1].splitlines()[0]
    assert SIGNED.findall(head) == ["60.0", percent(level("tiny", "full")["downstream"]["value"]), "70.0"]
    assert at("unchanged")["downstream"] == level("tiny", "full")["downstream"]
    columns = (0.6, "unchanged", 0.7)
    kept_at = {arm: [at(where)["kept"][arm]["value"] for where in columns] for arm in TREATED_ALIKE}
    rows = [[figure for one in kept_at[arm] for figure in with_interval(one)] for arm in TREATED_ALIKE]
    rows += [[figure for where in columns for figure in over(where, than)] for than in ("lora_all", "full")]
    assert claims("tiny", 1) == rows


def test_the_best_recipe_has_at_each_rate_its_own_figures_on_the_second_base():
    points = treated_alike("tiny_again")["points"]
    of_arms = [p for arm in TREATED_ALIKE for p in points if p["arm"] == arm]
    assert all(list(p["kept"]["by_seed"]) == ["0", "1", "2"] for p in of_arms)
    assert claims("tiny_again") == [
        [f"{p['learning_rate']:g}", *with_spread(p["kept"]), *with_spread(p["downstream"])] for p in of_arms
    ]
