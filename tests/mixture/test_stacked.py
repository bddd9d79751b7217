"""The stacked mixture against the loop over experts, in float64 and in every shape it may meet."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loramoe.mixture import mixture, mixture_reference, route


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def operands(
    leading: tuple[int, ...], D: int, F: int, R: int, E: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    x, router = draw(*leading, D, dtype=dtype), draw(E, D, seed=1, dtype=dtype)
    return [x, route(x, router), draw(E * R, D, seed=2, dtype=dtype), draw(F, E * R, seed=3, dtype=dtype)]


@pytest.mark.parametrize("leading", [(2, 5), (7,), (2, 3, 4), (), (0, 5), (2, 0)])
@pytest.mark.parametrize(("R", "E"), [(4, 8), (1, 3), (3, 1), (2, 5)])
def test_mixture_equals_the_loop_over_experts(leading: tuple[int, ...], R: int, E: int) -> None:
    x, gates, A, B = operands(leading, 6, 10, R, E)
    torch.testing.assert_close(mixture(x, gates, A, B, 8.0), mixture_reference(x, gates, A, B, 8.0))


@given(tokens=st.integers(0, 9), D=st.integers(1, 9), F=st.integers(1, 9), R=st.integers(1, 4), E=st.integers(1, 6))
def test_mixture_equals_the_loop_for_any_shape(tokens: int, D: int, F: int, R: int, E: int) -> None:
    x, gates, A, B = operands((tokens,), D, F, R, E)
    torch.testing.assert_close(mixture(x, gates, A, B, 0.5), mixture_reference(x, gates, A, B, 0.5))


def test_mixture_takes_a_non_contiguous_input() -> None:
    x, _, A, B = operands((5, 2), 6, 10, 4, 3)
    x = x.transpose(0, 1)
    gates = route(x, draw(3, 6, seed=1))
    torch.testing.assert_close(mixture(x, gates, A, B, 1.0), mixture_reference(x, gates, A, B, 1.0))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_mixture_in_lower_precision_is_within_its_rounding(dtype: torch.dtype, tolerance: float) -> None:
    x, gates, A, B = operands((4, 16), 64, 48, 4, 8, dtype)
    truth = mixture_reference(x.double(), gates.double(), A.double(), B.double(), 8.0)
    error = (mixture(x, gates, A, B, 8.0).double() - truth).norm() / truth.norm()
    assert error < tolerance


def test_gradients_pass_gradcheck() -> None:
    x, _, A, B = (t.requires_grad_() for t in operands((2, 3), 4, 5, 2, 3))
    router = draw(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w, A, B: mixture(x, route(x, w), A, B, 2.0), (x, router, A, B))


def test_permuting_the_experts_changes_nothing() -> None:
    x, router, A, B = draw(5, 6), draw(4, 6, seed=1), draw(8, 6, seed=2), draw(7, 8, seed=3)
    order = torch.tensor([2, 0, 3, 1])
    A2 = A.view(4, 2, 6)[order].reshape(8, 6)
    B2 = B.view(7, 4, 2)[:, order].reshape(7, 8)
    before = mixture(x, route(x, router), A, B, 1.0)
    torch.testing.assert_close(mixture(x, route(x, router[order]), A2, B2, 1.0), before)


@given(E=st.integers(1, 9), scale=st.floats(1e-3, 1e3))
def test_gates_sum_to_one(E: int, scale: float) -> None:
    gates = route(scale * draw(3, 5, 6), draw(E, 6, seed=1))
    assert (gates >= 0).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(3, 5, dtype=gates.dtype))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_gates_are_at_least_float32(dtype: torch.dtype, expected: torch.dtype) -> None:
    assert route(draw(3, 6, dtype=dtype), draw(4, 6, seed=1, dtype=dtype)).dtype == expected


def test_autocast_does_not_round_the_gates() -> None:
    x, router = draw(64, 32, dtype=torch.float32), draw(8, 32, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gates = route(x, router)
    assert torch.equal(gates, route(x, router))


def test_a_device_without_autocast() -> None:
    x, router = torch.empty(3, 4, device="meta"), torch.empty(2, 4, device="meta")
    assert route(x, router).shape == (3, 2)
