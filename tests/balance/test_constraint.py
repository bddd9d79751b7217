"""The localized balancing constraint: against the equation entry by entry, its properties, and its minimum."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loramoe.balance.constraint import (
    Membership,
    coefficient,
    localized_balance,
    match_types,
    rows_as_samples,
    squared_cv,
)
from loramoe.ops import route


def draw_gates(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def constraint_by_loop(
    gates: Tensor, mask: Tensor, task_types: list[int], expert_types: list[int], a: float, target: str, kind: str
) -> float:
    """The equations as they stand, one number at a time."""
    Z = []
    for m, e in itertools.product(range(len(task_types)), range(len(expert_types))):
        real = [gates[m, s, e].item() for s in range(gates.shape[1]) if mask[m, s]]
        if not real:
            continue
        Q = statistics.mean(real) if kind == "mean" else sum(real)
        I = 1 + a if expert_types[e] == task_types[m] else 1 - a  # noqa: E741
        Z.append(Q * I if target == "paper" else Q / I)
    return statistics.variance(Z) / (statistics.mean(Z) ** 2 + 1e-10) if Z else 0.0


@given(
    M=st.integers(1, 4),
    S=st.integers(1, 6),
    types=st.lists(st.integers(0, 2), min_size=2, max_size=6),
    a=st.floats(0, 0.9),
    target=st.sampled_from(["paper", "match"]),
    kind=st.sampled_from(["mean", "sum"]),
    data=st.data(),
)
def test_constraint_is_the_equation(
    M: int, S: int, types: list[int], a: float, target: str, kind: str, data: st.DataObject
) -> None:
    task_types = data.draw(st.lists(st.sampled_from(types), min_size=M, max_size=M))
    lengths = data.draw(st.lists(st.integers(0, S), min_size=M, max_size=M))
    mask = torch.arange(S) < torch.tensor(lengths).unsqueeze(-1)
    gates, samples = draw_gates(M, S, len(types)), rows_as_samples(mask)
    I_ME = coefficient(torch.tensor(task_types), types, a, target).double()
    blc = localized_balance(samples.importance(gates, kind), I_ME, samples.tokens_M > 0)
    # The coefficient is float32, as in the original code.
    expected = constraint_by_loop(gates, mask, task_types, types, a, target, kind)
    assert blc.item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_layers_at_once_equal_one_by_one() -> None:
    gates, samples = draw_gates(3, 2, 5, 4), rows_as_samples(torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))
    I_ME = coefficient(torch.tensor([0, 1]), [1, 1, 0, 0], 0.1)
    Q_LME = torch.stack([samples.importance(g) for g in gates])
    torch.testing.assert_close(
        localized_balance(Q_LME, I_ME), torch.stack([localized_balance(Q_ME, I_ME) for Q_ME in Q_LME])
    )


def test_a_batch_of_padding_alone_is_zero_with_finite_gradients() -> None:
    Z = torch.zeros(2, 4, requires_grad=True)
    constraint = squared_cv(Z, torch.tensor([False, False]))
    constraint.backward()
    assert constraint.item() == 0
    assert torch.isfinite(Z.grad).all()


def test_a_single_expert_has_no_constraint() -> None:
    assert localized_balance(torch.rand(3, 2, 1), torch.ones(2, 1)).tolist() == [0, 0, 0]


def test_gradients_pass_gradcheck() -> None:
    I_ME, samples = (
        coefficient(torch.tensor([0, 1]), [1, 0, 0], 0.2).double(),
        rows_as_samples(torch.tensor([[1, 1, 0], [1, 1, 1]])),
    )
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    router = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: localized_balance(samples.importance(route(x, w)), I_ME), (router,))


@given(a=st.floats(0, 0.9), seed=st.integers(0, 5))
def test_with_two_types_the_directions_are_one_with_the_groups_swapped(a: float, seed: int) -> None:
    """1 / (1 ± a) = (1 ∓ a) / (1 − a²): a constant factor, which the squared coefficient of variation ignores."""
    Q, types = draw_gates(4, 6, seed=seed), [1, 1, 1, 0, 0, 0]
    task_types = torch.tensor([0, 1, 1, 0])
    match = localized_balance(Q, coefficient(task_types, types, a, "match"))
    paper = localized_balance(Q, coefficient(task_types, [1 - t for t in types], a, "paper"))
    torch.testing.assert_close(match, paper, rtol=1e-5, atol=1e-9)


def minimise(
    samples: Membership, task_types: Tensor, expert_types: list[int], a: float, target: str, kind: str = "mean"
) -> Tensor:
    """The gate weight of each sample's own group, [M], where the constraint of free gates is least."""
    M, E = len(task_types), len(expert_types)
    logits = torch.randn(M, E, generator=torch.Generator().manual_seed(0)).double().requires_grad_(True)
    I_ME = coefficient(task_types, expert_types, a, target).double()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        gates_ME = logits.softmax(-1)
        gates_BSE = gates_ME.unsqueeze(1).expand(*samples.shape, E)
        loss = localized_balance(samples.importance(gates_BSE, kind), I_ME)
        loss.backward()
        return loss

    optimizer.step(closure)
    return (logits.detach().softmax(-1) * match_types(task_types, expert_types)).sum(-1)


@pytest.mark.parametrize(("target", "sign"), [("match", 1), ("paper", -1)])
@pytest.mark.parametrize(("ratio", "a"), [(1, 0.1), (4, 0.5), (16, 0.1)])
def test_the_mean_reaches_the_closed_form_whatever_the_lengths(ratio: int, a: float, target: str, sign: int) -> None:
    """Q_match / Q_other = (1 + a) / (1 − a) for "match", its inverse for "paper"."""
    samples = rows_as_samples(torch.arange(ratio) < torch.tensor([[1], [ratio]]))
    own_M = minimise(samples, torch.tensor([1, 0]), [1, 1, 0, 0], a, target)
    torch.testing.assert_close(own_M, torch.full((2,), (1 + sign * a) / 2).double(), rtol=1e-3, atol=0)


def test_the_sum_sends_short_and_long_samples_to_one_group() -> None:
    """Why the mean is the default."""
    samples = rows_as_samples(torch.arange(4) < torch.tensor([[1], [4]]))
    own_M = minimise(samples, torch.tensor([1, 0]), [1, 1, 0, 0], 0.1, "match", "sum")
    assert own_M[1] > 0.5 > own_M[0]


def test_three_types_get_a_group_each() -> None:
    types, samples = [0, 0, 1, 1, 2, 2], rows_as_samples(torch.ones(3, 1))
    own_M = minimise(samples, torch.tensor([0, 1, 2]), types, 0.5, "match")
    torch.testing.assert_close(own_M, torch.full((3,), 1.5 / 2.5).double(), rtol=1e-3, atol=0)
