"""On a GPU: the same constraint and the same gradients as on the CPU, also under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import loramoe
from loramoe.ops import IMPLEMENTATIONS
from tests.constrained import adapted, batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on(device: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}


def test_loss_and_gradients_equal_the_cpus() -> None:
    model, inputs = adapted(blc_weight=0.5), batch()
    model(**inputs).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model.cuda()(**on("cuda", inputs)).loss.backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad.cpu(), expected[name], rtol=1e-3, atol=1e-5)


def test_autocast_rounds_neither_gates_nor_constraint() -> None:
    model, inputs = adapted(target_modules=["layers.0.mlp.gate_proj"]), batch()
    model(**inputs)
    expected = loramoe.last_balance(model)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        model.cuda()(**on("cuda", inputs))
    got = loramoe.last_balance(model)
    assert got.gate_TLE.dtype == got.constraint.dtype == torch.float32
    # What comes before the linear is rounded by autocast, so the two agree to bfloat16's three digits.
    torch.testing.assert_close(got.gate_TLE.cpu(), expected.gate_TLE, rtol=2e-2, atol=2e-3)


def test_task_types_may_stay_on_the_cpu() -> None:
    model, inputs = adapted().cuda(), batch()
    moved = on("cuda", inputs)
    torch.testing.assert_close(model(**{**moved, "task_types": inputs["task_types"]}).loss, model(**moved).loss)


@pytest.mark.parametrize("implementation", ["fused", "eager"])
def test_the_mixture_equals_that_of_the_cpu(implementation: str) -> None:
    add = IMPLEMENTATIONS[implementation]
    shapes = ((5, 12), (5, 8), (3, 8), (6, 8), (12, 6))  # y, x, router, A, B
    here = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    there = [tensor.detach().cuda().requires_grad_() for tensor in here]
    for tensors in (here, there):
        y, gates = add(tensors[0] * 1, *tensors[1:], 2.0)
        (y.square().sum() + gates.square().sum()).backward()
    for tensor, expected in zip(there, here, strict=True):
        torch.testing.assert_close(tensor.grad.cpu(), expected.grad)


def test_dropout_on_a_gpu_is_the_same_in_backward() -> None:
    shapes = ((5, 8), (3, 8), (6, 8), (12, 6))
    tensors = [torch.randn(shape, dtype=torch.float64, device="cuda", requires_grad=True) for shape in shapes]

    def with_the_same_dropout(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        return IMPLEMENTATIONS["fused"](torch.zeros(5, 12, dtype=torch.float64, device="cuda"), *tensors, 2.0, 0.4)

    assert torch.autograd.gradcheck(with_the_same_dropout, tensors)
