"""Each figure of the real scale's claims, in README and in the tables of docs/experiments.md, is what it is said to be.

As `test_claims.py`, which holds those of the tiny scale.
"""

from __future__ import annotations

import json
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
    percent,
    point,
    shares,
    summary,
    told,
    tuned,
    with_interval,
    with_spread,
)
from tests.experiments.knowledge_forgetting.test_published import RESULTS


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


def of_two_epochs(arm: str) -> list[dict[str, Any]]:
    """The best recipe at each of its rates."""
    ranked = summary("real")["recipes"][0]["ranked"]
    (found,) = [one for one in ranked if (one["arm"], one["changes"]) == (arm, BEST)]
    return list(found["at_rates"])


def test_the_best_recipe_has_at_each_rate_its_own_figures_at_the_real_scale():
    expected, seeds = [], []
    for arm in TREATED_ALIKE:
        for at in of_two_epochs(arm):
            once = point("real", arm, at["learning_rate"])
            rate = SIGNED.findall(f"{at['learning_rate']:g}")  # of 3e-05 nothing
            beside = [percent(once[name]["value"]) for name in ("kept", "downstream")]
            expected.append([*rate, *with_interval(at["kept"]), *with_interval(at["downstream"]), *beside])
            seeds.append(str(len(at["seeds"])))
    assert claims("real", at=1) == expected
    assert re.findall(r"\| (\d) \|", told("docs/experiments.md", "real").split("| seeds |")[1]) == seeds


def test_the_best_recipe_wins_nothing_at_the_real_scale():
    most = {arm: of_two_epochs(arm)[-1] for arm in TREATED_ALIKE}
    learnt = {arm: at["downstream"]["value"] for arm, at in most.items()}
    told_of = told("docs/experiments.md", "real").split("**The recipe does not win here:**")[1].split("\n- ")[0]
    assert SIGNED.findall(told_of) == [percent(learnt[arm]) for arm in ("lora_all", "full", "loramoe_all")]
    for arm in TREATED_ALIKE:
        for at in of_two_epochs(arm):
            once = point("real", arm, at["learning_rate"])["downstream"]["by_seed"]
            assert at["downstream"]["value"] > sum(once[str(seed)] for seed in at["seeds"]) / len(at["seeds"])
            assert at["kept"]["value"] > 1
    widths = [100 * (most[arm]["downstream"]["high"] - most[arm]["downstream"]["low"]) for arm in TREATED_ALIKE]
    assert all(7.5 < width < 9.5 for width in widths)
    assert round(100 * (learnt["lora_all"] - learnt["loramoe_all"])) == 2
    assert 100 * (learnt["full"] - learnt["loramoe_all"]) == pytest.approx(1 / 7, abs=0.005)
    assert learnt["lora_all"] > learnt["full"]


def test_one_seed_of_the_best_recipe_had_lora_further_ahead():
    names = summary("real")["sets"]["downstream"]
    name = "real/{}-lr0.001-rows400-seed0-epochs=2-replay=0.5.json"
    files = [(RESULTS / name.format(arm)).read_text(encoding="utf-8") for arm in ("lora_all", "loramoe_all")]
    accuracies = [json.loads(file)["accuracy"]["test"] for file in files]
    lora, loramoe = (100 * sum(of[name] for name in names) / len(names) for of in accuracies)
    assert round(lora - loramoe) == 5
