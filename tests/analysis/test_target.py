"""The closed form is the minimum of the constraint, found by numbers; the conclusion names what was found."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from loramoe import LoraMoeConfig
from loramoe.analysis.target import conclude, separation, target_shares
from loramoe.balance.constraint import coefficient, localized_balance

NAMES = {0: "tasks", 1: "knowledge", 2: "code"}


def minimise(expert_types: tuple[int, ...], types_M: list[int], a: float, target: str) -> torch.Tensor:
    """The gates of the first sample of each type at the minimum of the constraint over free gates."""
    coefficient_ME = coefficient(torch.tensor(types_M), expert_types, a, target).double()
    logits_ME = torch.zeros(len(types_M), len(expert_types), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits_ME], max_iter=500, tolerance_grad=1e-13, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = localized_balance(logits_ME.softmax(-1), coefficient_ME)
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits_ME.detach().softmax(-1)[[types_M.index(t) for t in sorted(set(types_M))]]


@pytest.mark.parametrize("target", ["match", "paper"])
@pytest.mark.parametrize(("expert_types", "types_M"), [((1, 1, 0, 0), [0, 1]), ((1, 1, 1, 0, 2), [0, 1, 1, 2, 2, 2])])
def test_the_closed_form_is_the_minimum(make_stats, expert_types: tuple[int, ...], types_M: list[int], target: str):
    types, counts = np.unique(types_M, return_counts=True)
    stats = dataclasses.replace(make_stats(tuple(types.tolist()), expert_types), samples_T=counts)
    found = target_shares(stats, LoraMoeConfig(blc_alpha=0.3, blc_target=target))
    expected = minimise(expert_types, types_M, 0.3, target).numpy() @ stats.of_group_EG
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("changes", [{"blc_weight": 0}, {"blc_importance": "sum"}], ids=str)
def test_without_a_fixed_minimum_there_is_no_target(make_stats, changes: dict[str, object]):
    stats, config = make_stats(), LoraMoeConfig(**changes)
    assert target_shares(stats, config) is None
    assert str(next(iter(changes))) in conclude(stats, config, NAMES)


def test_the_conclusion_of_two_types(make_stats):
    expected = "Separation 9.8 of 10 points aimed at: knowledge samples give 54.9 % of their weight to the knowledge "
    assert conclude(make_stats(own=0.549), LoraMoeConfig(), NAMES) == expected + "experts, tasks samples 45.1 %."


def test_the_conclusion_of_three_types(make_stats):
    stats = make_stats(task_types=(0, 1, 2), expert_types=(2, 1, 0), own=0.37)
    assert separation(stats.share_TG, stats) == pytest.approx(0.37 - 0.315)
    for part in ("code samples give 37.0 %", "to the code experts, others 31.5 %", "tasks samples give 37.0 %"):
        assert part in conclude(stats, LoraMoeConfig(), NAMES)


@pytest.mark.parametrize(
    ("own", "target", "specialised"),
    [(0.524, "match", False), (0.526, "match", True), (0.45, "match", False), (0.45, "paper", True)],
)
def test_half_of_the_target_counts_as_specialised(make_stats, own: float, target: str, specialised: bool):
    conclusion = conclude(make_stats(own=own), LoraMoeConfig(blc_target=target), NAMES)
    assert conclusion.startswith("Separation") is specialised
    assert ("blc_weight" in conclusion) is not specialised  # what to try
