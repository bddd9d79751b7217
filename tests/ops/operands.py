"""Random operands of the mixture, its definition by the loop over experts, and gradients of both."""

from __future__ import annotations

import torch
from torch import Tensor

from loramoe.ops import add_fused, mixture_reference, route

SCALING = 2.0
Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # x, router, A, B, weight of the linear layer
SHAPES = [(2, 3, 4), (), (2, 0)]  # leading dimensions


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operands(leading: tuple[int, ...] = (2, 5), D: int = 6, F: int = 10, R: int = 4, E: int = 3) -> Operands:
    x, router, A, B = draw(*leading, D), draw(E, D, seed=1), draw(E * R, D, seed=2), draw(F, E * R, seed=3)
    return x.requires_grad_(), router.requires_grad_(), A.requires_grad_(), B.requires_grad_(), draw(F, D, seed=4)


def reference(given: Operands, dropped: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Output and gates by the loop; `dropped` is x after dropout."""
    x, router, A, B, base = given
    gates = route(x, router)
    return x @ base.T + mixture_reference(x if dropped is None else dropped, gates, A, B, SCALING), gates


def fused(x: Tensor, router: Tensor, A: Tensor, B: Tensor, base: Tensor, p: float = 0.0) -> tuple[Tensor, Tensor]:
    return add_fused(x @ base.T, x, router, A, B, SCALING, p)


def gradients(outputs: tuple[Tensor, Tensor], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a loss to which output and gates contribute, as in training; to the first four tensors."""
    y, gates = (output.double() for output in outputs)
    loss = (y * draw(*y.shape, seed=5)).sum() + (gates * draw(*gates.shape, seed=6)).sum()
    return torch.autograd.grad(loss, tensors[:4])


def assert_equals_reference(ours: tuple[Tensor, Tensor], given: Operands, dropped: Tensor | None = None) -> None:
    truth = reference(given, dropped)
    torch.testing.assert_close(ours, truth)
    torch.testing.assert_close(gradients(ours, given), gradients(truth, given))
