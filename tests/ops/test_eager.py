"""The mixture in plain PyTorch: gates, and equality with the loop over experts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loramoe.ops import add_eager, mixture, mixture_reference, route
from tests.ops.operands import SCALING, SHAPES, assert_equals_reference, draw, operands


@pytest.mark.parametrize("leading", SHAPES)
@pytest.mark.parametrize(("R", "E"), [(4, 8), (3, 1)])
def test_equals_the_loop_over_experts(leading: tuple[int, ...], R: int, E: int) -> None:
    x, router, A, B, base = operands(leading, R=R, E=E)
    assert_equals_reference(add_eager(x @ base.T, x, router, A, B, SCALING), (x, router, A, B, base))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precision_is_within_its_rounding(dtype: torch.dtype, tolerance: float) -> None:
    x, router, A, B = (tensor.detach().to(dtype) for tensor in operands((4, 16), D=64, F=48, E=8)[:4])
    gates = route(x, router)
    truth = mixture_reference(x.double(), gates.double(), A.double(), B.double(), SCALING)
    assert (mixture(x, gates, A, B, SCALING).double() - truth).norm() / truth.norm() < tolerance


def test_dropout_applies_to_the_experts_only() -> None:
    x, router, A, B, base = operands((64,))
    torch.manual_seed(0)
    y, gates = add_eager(x @ base.T, x, router, A, B, SCALING, 0.5)
    torch.manual_seed(0)
    dropped = torch.nn.functional.dropout(x, 0.5)
    assert (dropped == 0).any()
    assert_equals_reference((y, gates), (x, router, A, B, base), dropped)


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
    assert route(draw(3, 6).to(dtype), draw(4, 6, seed=1).to(dtype)).dtype == expected


def test_autocast_does_not_round_the_gates() -> None:
    x, router = draw(64, 32).float(), draw(8, 32, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gates = route(x, router)
    assert torch.equal(gates, route(x, router))
