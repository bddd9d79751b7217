"""Each figure of the real scale's claims, in README and in the tables of docs/experiments.md, is what it is said to be.

As `test_claims.py`, which holds those of the tiny scale.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.experiments.knowledge_forgetting.test_claims import (
    BEST,
    SIGNED,
    TREATED_ALIKE,
    Figures,
    claims,
    downstream,
    level,
    pair,
    percent,
    point,
    shares,
    summary,
    told,
    treated_alike,
    tuned,
    with_interval,
    with_spread,
)


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_readme_tells_of_the_real_scale_what_was_measured(page: str):
    of_arms = [one["point"]["kept"]["value"] for one in summary("real")["tuned"]]
    assert SIGNED.findall(told(page, "real")) == [percent(min(of_arms)), percent(max(of_arms))]


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_readme_tells_of_the_larger_sets_what_was_measured(page: str):
    of_arms = [point["kept"]["value"] for point in summary("real_gpu")["frontier"]]
    assert SIGNED.findall(told(page, "real_gpu")) == [percent(min(of_arms)), percent(max(of_arms))]


def variation(arm: str, rate: float) -> str:
    return f"{point('real', arm, rate)['variation']['value']:.2f}"


def more_kept(scale: str, name: str, than: str, arm: str) -> Figures:
    """By how much more an arm keeps than another, at the level of a third."""
    return with_interval(level(scale, name)["differences"][than][arm]["value"])


def test_each_claim_at_the_real_scale_has_its_own_figures():
    of_arms = [one["point"]["kept"]["value"] for one in summary("real")["tuned"]]
    assert len(of_arms) == 7
    free, bound = ("loramoe_free",), ("loramoe_paper", "loramoe_match")
    bound_and_free = (*bound, *free)
    assert claims("real") == [
        [
            *(percent(of(of_arms)) for of in (min, max)),
            *with_interval(tuned("real", "full")["kept"]),
            *with_interval(tuned("real", "lora_all")["kept"]),
            *(figure for rate in (3e-4, 1e-3) for figure in with_spread(point("real", "full", rate)["kept"])),
        ],
        [
            *with_interval(tuned("real", "loramoe_paper")["kept"]),
            *with_interval(tuned("real", "loramoe_all")["kept"]),
            percent(level("real", "full")["downstream"]["value"]),
            *more_kept("real", "full", "lora_mlp", "loramoe_paper"),
            *more_kept("real", "full", "lora_all", "loramoe_all"),
        ],
        downstream("real", "loramoe_paper", "lora_mlp", "loramoe_all", "lora_all", "full"),
        [
            percent(level("real", "full")["downstream"]["value"]),
            *more_kept("real", "full", "loramoe_free", "loramoe_paper"),
            *more_kept("real", "full", "loramoe_free", "loramoe_match"),
            *(percent(point("real", arm, rate)["kept"]["value"]) for rate in (3e-3, 1e-2) for arm in bound_and_free),
        ],
        [
            *(share for arm in (*free, *bound) for share in shares(tuned("real", arm))),
            *(share for rate in (3e-3, 3e-4) for share in shares(point("real", "loramoe_paper", rate))),
        ],
        [variation(arm, rate) for rate in (1e-3, 1e-2) for arm in (*free, "loramoe_paper")],
    ]


def test_each_arm_has_its_own_figures_at_each_number_of_rows_of_the_real_scale():
    lines = summary("real_float32")["rows_study"]
    assert [[of["rows"] for of in line] for line in lines] == [[100, 200, 400, 2_000]] * 4
    assert claims("real_float32") == [
        [
            f"{line[0]['learning_rate']:g}",
            *(percent(of[name]["value"]) for of in line for name in ("kept", "downstream")),
        ]
        for line in lines
    ]


def test_each_of_all_arms_has_its_own_figures_at_one_rate_of_the_real_scale():
    points = summary("real_float32")["frontier"]
    assert (summary("real_float32")["rows"], len(points)) == (400, 7)
    assert claims("real_float32", at=1) == [
        [f"{of['learning_rate']:g}", *with_interval(of["kept"]), *with_interval(of["downstream"])] for of in points
    ]


def test_each_arm_has_its_own_figures_on_the_larger_sets_of_items():
    knowledge = ("trex", "webquestions", "natural_questions")
    of_base, points = summary("real_gpu")["base"], summary("real_gpu")["frontier"]
    assert (summary("real_gpu")["rows"], summary("real_gpu")["seeds"]) == (800, [0])
    assert claims("real_gpu") == [
        [percent(of_base["downstream"]["value"]), *(percent(of_base["by_set"][name]) for name in knowledge)],
        *(
            [
                *SIGNED.findall(f"{of['learning_rate']:g}"),
                *(*with_interval(of["kept"]), *with_interval(of["downstream"])),
                *(percent(of["by_set"][name]) for name in knowledge),
            ]
            for of in points
        ),
    ]


def in_two_epochs(arm: str) -> list[dict[str, Any]]:
    """The best recipe at each of its rates."""
    return [p for p in treated_alike("real")["points"] if p["arm"] == arm]


def tuned_in_two_epochs() -> dict[str, dict[str, Any]]:
    return {one["arm"]: one["point"] for one in treated_alike("real")["tuned"]}


def of_the_best_recipe(begins: str) -> str:
    """The point of the list on two epochs that begins so."""
    return told("docs/experiments.md", "real").split(f"- **{begins}")[1].split("\n- ")[0]


def test_the_best_recipe_has_at_each_rate_its_own_figures_at_the_real_scale():
    expected = []
    for arm in TREATED_ALIKE:
        at_rates = recipe_at_rates(arm)
        assert [at["learning_rate"] for at in at_rates] == [p["learning_rate"] for p in in_two_epochs(arm)]
        for at in at_rates:
            assert at["seeds"] == [0, 1, 2]
            once = point("real", arm, at["learning_rate"])
            rate = SIGNED.findall(f"{at['learning_rate']:g}")  # of 3e-05 nothing
            beside = [percent(once[name]["value"]) for name in ("kept", "downstream")]
            expected.append([*rate, *with_interval(at["kept"]), *with_interval(at["downstream"]), *beside])
    assert claims("real", at=1) == expected


def recipe_at_rates(arm: str) -> list[dict[str, Any]]:
    ranked = summary("real")["recipes"][0]["ranked"]
    (found,) = [one for one in ranked if (one["arm"], one["changes"]) == (arm, BEST)]
    return list(found["at_rates"])


def test_the_best_recipe_tells_no_arm_from_another_at_the_real_scale():
    chosen, alike = tuned_in_two_epochs(), treated_alike("real")
    over = [pair(alike, than)["learns_more"] for than in ("lora_all", "full")]
    assert SIGNED.findall(of_the_best_recipe("It teaches every arm more")) == [
        *(percent(chosen[arm]["downstream"]["value"]) for arm in TREATED_ALIKE),
        *(*with_interval(over[0]), *with_interval(over[1])),
    ]
    assert all(one["low"] < 0 < one["high"] for one in over)
    for than in ("lora_all", "full"):
        signs = {pair(alike, than, task)["learns_more"]["value"] > 0 for task in summary("real")["sets"]["downstream"]}
        assert signs == {True, False}
    gained = [
        100 * (of["downstream"]["value"] - tuned("real", arm)["downstream"]["value"]) for arm, of in chosen.items()
    ]
    assert 3 < min(gained) < max(gained) < 5
    assert SIGNED.findall(of_the_best_recipe("None is seen to lose")) == [
        figure for arm in TREATED_ALIKE for figure in with_interval(chosen[arm]["kept"])
    ]
    assert all(of["kept"]["value"] > 1 for of in chosen.values())


def test_the_best_recipe_at_the_highest_rate_of_the_real_scale():
    highest = {arm: in_two_epochs(arm)[-1] for arm in TREATED_ALIKE}
    both = {arm: [percent(of[name]["value"]) for name in ("downstream", "kept")] for arm, of in highest.items()}
    assert SIGNED.findall(of_the_best_recipe("At the highest rate LoRAMoE learns most")) == [
        *("0.003", *both["loramoe_all"], *both["lora_all"]),
        *("0.0003", *both["full"]),
    ]
    chosen = tuned_in_two_epochs()
    assert chosen["loramoe_all"] == highest["loramoe_all"]
    for arm in ("lora_all", "full"):
        assert chosen[arm]["downstream"]["value"] > highest[arm]["downstream"]["value"] + 0.03


def test_the_goal_at_the_real_scale_is_reached_by_all():
    by_one, by_two = ({goal["arm"]: goal for goal in treated_alike("real")[name]} for name in ("goal", "goal_alike"))
    assert all(goal["reached"] for goals in (by_one, by_two) for goal in goals.values())
    shares = [of[arm]["reached_in"] for of in (by_one, by_two) for arm in TREATED_ALIKE]
    told_of = of_the_best_recipe("The goal is reached by all three")
    assert re.findall(r"\d+", told_of) == [f"{100 * share:.0f}" for share in shares]
