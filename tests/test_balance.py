"""The localized balancing constraint: against the equation entry by entry, and its properties."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loramoe.balance import coefficient, importance, localized_balance, share_of_step, squared_cv
from loramoe.mixture import route


def draw_gates(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def by_hand(
    gates: Tensor, mask: Tensor, task_types: list[int], expert_types: list[int], a: float, target: str
) -> float:
    """The equations of the constraint as they stand, one number at a time."""
    Z = []
    for m, e in itertools.product(range(len(task_types)), range(len(expert_types))):
        Q = sum(gates[m, s, e].item() for s in range(gates.shape[1]) if mask[m, s])
        coefficient = 1 + a if expert_types[e] == task_types[m] else 1 - a
        Z.append(Q * coefficient if target == "paper" else Q / coefficient)
    return statistics.variance(Z) / (statistics.mean(Z) ** 2 + 1e-10)


@given(
    M=st.integers(1, 4),
    S=st.integers(1, 6),
    types=st.lists(st.integers(0, 2), min_size=2, max_size=6),
    a=st.floats(0, 0.9),
    target=st.sampled_from(["paper", "match"]),
    data=st.data(),
)
def test_constraint_is_the_equation(
    M: int, S: int, types: list[int], a: float, target: str, data: st.DataObject
) -> None:
    task_types = data.draw(st.lists(st.sampled_from(types), min_size=M, max_size=M))
    lengths = data.draw(st.lists(st.integers(1, S), min_size=M, max_size=M))
    mask = torch.arange(S) < torch.tensor(lengths).unsqueeze(-1)
    gates = draw_gates(M, S, len(types))
    Q = importance(gates, mask)
    blc = localized_balance(Q, coefficient(torch.tensor(task_types), types, a, target).double())
    # The coefficient itself is float32, as in the released code.
    assert blc.item() == pytest.approx(by_hand(gates, mask, task_types, types, a, target), rel=1e-5, abs=1e-9)


def test_several_linears_at_once_equal_one_by_one() -> None:
    gates = draw_gates(3, 2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    I_ME = coefficient(torch.tensor([0, 1]), [1, 1, 0, 0], 0.1)
    together = localized_balance(importance(gates, mask), I_ME)
    torch.testing.assert_close(together, torch.stack([localized_balance(importance(g, mask), I_ME) for g in gates]))


@given(E=st.integers(2, 7), M=st.integers(1, 4), value=st.floats(1e-2, 1e3))
def test_zero_if_balanced(E: int, M: int, value: float) -> None:
    assert squared_cv(torch.full((M, E), value, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-20)


@given(entries=st.lists(st.floats(0.1, 10), min_size=2, max_size=8).filter(lambda z: max(z) - min(z) > 1e-3))
def test_positive_if_not_balanced(entries: list[float]) -> None:
    assert squared_cv(torch.tensor([entries], dtype=torch.float64)).item() > 0


def test_finite_if_nothing_is_counted() -> None:
    Z = torch.zeros(2, 4, requires_grad=True)
    squared_cv(Z).backward()
    assert squared_cv(Z).item() == 0
    assert torch.isfinite(Z.grad).all()


@given(padding=st.integers(0, 5), garbage=st.floats(-10, 10))
def test_padding_changes_nothing(padding: int, garbage: float) -> None:
    gates = draw_gates(2, 4, 6)
    padded = torch.cat([gates, torch.full((2, padding, 6), garbage, dtype=gates.dtype)], dim=1)
    mask = torch.cat([torch.ones(2, 4), torch.zeros(2, padding)], dim=1)
    assert torch.equal(importance(padded, mask), importance(gates, torch.ones(2, 4)))
    assert torch.equal(importance(gates), importance(gates, torch.ones(2, 4)))


def test_permuting_experts_of_one_type_changes_nothing() -> None:
    Q = importance(draw_gates(3, 5, 4))
    I_ME = coefficient(torch.tensor([0, 1, 1]), [1, 1, 0, 0], 0.3)
    swapped = Q[:, [1, 0, 3, 2]]
    torch.testing.assert_close(localized_balance(swapped, I_ME), localized_balance(Q, I_ME))


def test_gradients_pass_gradcheck() -> None:
    I_ME = coefficient(torch.tensor([0, 1]), [1, 0, 0], 0.2).double()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    router = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: localized_balance(importance(route(x, w), mask), I_ME), (router,))


@pytest.mark.parametrize(("target", "match", "other"), [("paper", 0.125, 0.375), ("match", 0.375, 0.125)])
def test_direction_of_the_minimum(target: str, match: float, other: float) -> None:
    """Q_match / Q_other = (1 − a) / (1 + a) for "paper": the matching group gets *less*; "match" is the inverse."""
    logits = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    I_ME = coefficient(torch.tensor([1, 0]), [1, 1, 0, 0], 0.5, target).double()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = localized_balance(logits.softmax(-1), I_ME)
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = torch.tensor([[match, match, other, other], [other, other, match, match]], dtype=torch.float64)
    torch.testing.assert_close(logits.detach().softmax(-1), expected, rtol=1e-4, atol=0)


def test_a_task_type_that_no_expert_has_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"task_types has 7, which is the type of no expert; the experts have types \[0, 1\]"
    ):
        coefficient(torch.tensor([0, 7]), [1, 1, 0, 0], 0.1)


@pytest.mark.parametrize(
    "task_types", [torch.tensor([0.0, 1.0]), torch.tensor([[0], [1]]), torch.tensor([True, False])]
)
def test_task_types_that_are_no_integer_vector_are_refused(task_types: Tensor) -> None:
    with pytest.raises(ValueError, match="task_types must be one integer for each sample"):
        coefficient(task_types, [1, 0], 0.1)


def test_a_single_entry_has_no_variance() -> None:
    with pytest.raises(ValueError, match=r"needs at least 2 entries .* got Z of shape \[1, 1\]"):
        squared_cv(torch.ones(1, 1))


@pytest.mark.parametrize("items", [20, torch.tensor(20)])
def test_share_of_step(items: int | Tensor) -> None:
    labels = torch.tensor([[5, 5, 5, -100], [-100, 5, 5, 5]])
    for skips_first, counted in ((True, 5), (False, 6)):
        assert share_of_step({"labels": labels, "num_items_in_batch": items}, skips_first) == counted / 20
        assert share_of_step({"shift_labels": labels, "num_items_in_batch": items}, skips_first) == 6 / 20
        assert share_of_step({"start_positions": labels[0], "num_items_in_batch": items}, skips_first) == 3 / 20
        assert share_of_step({"labels": labels}, skips_first) == 1


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_items_in_batch=20 was given without labels, .* Pass labels too"):
        share_of_step({"num_items_in_batch": 20}, True)
