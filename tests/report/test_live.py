"""What is logged of the model's parts, by known answers."""

from __future__ import annotations

from types import SimpleNamespace as Balance

import pytest
import torch

from loramoe.report import ShareMeter
from loramoe.report.live import by_depth, by_kind, live_figures, totals

LINEARS = tuple(f"model.layers.{layer}.mlp.{kind}" for layer in range(3) for kind in ("up_proj", "down_proj"))


def meter(
    gates: dict[int, list[list[float]]], tokens: dict[int, float], linears: tuple[str, ...] = LINEARS
) -> ShareMeter:
    """A meter with one forward: for each task type the gates of every linear, [L][E], half of the experts of type 1."""
    experts = len(next(iter(gates.values()))[0])
    constraint_L = torch.arange(1.0, len(linears) + 1)
    filled = ShareMeter()
    filled.add(
        Balance(
            constraint_L=constraint_L,
            gate_TLE=torch.tensor([gates[task_type] for task_type in sorted(gates)]),
            tokens_T=torch.tensor([tokens[task_type] for task_type in sorted(gates)]),
            task_types=tuple(sorted(gates)),
            expert_types=(1,) * (experts // 2) + (0,) * (experts - experts // 2),
            layers=linears,
        )
    )
    return filled


EVEN, ONE = [0.5, 0.5], [1.0, 0.0]
BOTH_TYPES = meter({0: [EVEN, ONE, EVEN, EVEN, ONE, ONE], 1: [EVEN] * 6}, {0: 10, 1: 30})


def test_parts_of_the_model_by_known_answer():
    figures = live_figures(BOTH_TYPES.result())
    # Where type 0 gave all to one expert, the two got 10 + 15 and 15 of 40 tokens: √((2 · 5²) / 1) / 20.
    uneven = 50**0.5 / 20
    expected = {
        "blc": 21,
        "cov": uneven / 2,
        "share/type0/group0": 0.25,
        "share/type0/group1": 0.75,
        "share/type1/group0": 0.5,
        "share/type1/group1": 0.5,
        "routing/blc/early": 1 + 2,
        "routing/blc/middle": 3 + 4,
        "routing/blc/late": 5 + 6,
        "routing/cov/early": uneven / 2,
        "routing/cov/middle": 0,
        "routing/cov/late": uneven,
        "routing/cov/up_proj": uneven / 3,
        "routing/cov/down_proj": uneven * 2 / 3,
        "routing/share/type0/group0/early": 0.25,
        "routing/share/type0/group0/middle": 0.5,
        "routing/share/type0/group0/late": 0,
        "routing/share/type0/group1/early": 0.75,
        "routing/share/type0/group1/middle": 0.5,
        "routing/share/type0/group1/late": 1,
        **{f"routing/share/type1/group{g}/{depth}": 0.5 for g in (0, 1) for depth in ("early", "middle", "late")},
    }
    assert figures == pytest.approx(expected)


def test_variation_reaches_the_root_of_the_number_of_experts_and_no_more():
    alone = meter({1: [[1.0, 0, 0, 0, 0, 0, 0, 0]]}, {1: 5}, ("head",)).result()
    assert alone.cov().tolist() == pytest.approx([8**0.5])
    assert meter({1: [[0.125] * 8]}, {1: 5}, ("head",)).result().cov().tolist() == [0]
    assert meter({1: [[1.0]]}, {1: 5}, ("head",)).result().cov().tolist() == [0]


def test_several_processes_log_what_one_would():
    halves = [meter({0: [ONE] * 6}, {0: 10}), meter({0: [EVEN] * 6, 1: [ONE] * 6}, {0: 30, 1: 5})]
    together = live_figures(ShareMeter.sum(half.on_cpu() for half in halves).result())
    shares = {0: [[0.625, 0.375]] * 6, 1: [ONE] * 6}
    assert together == pytest.approx(live_figures(meter(shares, {0: 40, 1: 5}).result()))


def test_depths_hold_whole_layers_and_all_of_them():
    names = [f"model.layers.{layer}.mlp.{kind}" for layer in range(32) for kind in ("gate_proj", "up_proj")]
    depths = by_depth([*names, "lm_head"])
    assert list(depths) == ["early", "middle", "late"]
    assert [len(linears) for linears in depths.values()] == [22, 22, 21]
    assert [linear for linears in depths.values() for linear in linears] == list(range(65))


@pytest.mark.parametrize("linears", [LINEARS[:4], ("lm_head",)])
def test_models_of_fewer_layers_have_no_thirds(linears: tuple[str, ...]):
    assert by_depth(linears) == {}


def test_a_single_kind_is_the_whole():
    assert by_kind(LINEARS) == {"up_proj": [0, 2, 4], "down_proj": [1, 3, 5]}
    assert by_kind(["layers.0.mlp.up_proj", "layers.1.mlp.up_proj"]) == {}


def test_totals_are_what_the_parts_leave():
    figures = live_figures(BOTH_TYPES.result())
    kept = {"loss": 1.0, **totals(figures)}
    assert list(totals({"loss": 1.0, **figures, "eval_routing/cov/early": 2.0, "eval_cov": 3.0})) == [*kept, "eval_cov"]
    assert set(kept) == {"loss", "blc", "cov", *(f"share/type{t}/group{g}" for t in (0, 1) for g in (0, 1))}
