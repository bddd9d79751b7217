"""Correctness before timing: every side is held to the equation, written as a loop over experts, in float64."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.sides import OURS, Mixture, NaiveMixture, linear_side, trained
from loramoe.ops import mixture_reference, route

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # of ‖error‖ / ‖truth‖; one rounding to bfloat16 is 2e-3
CHECKED_TOKENS = 1024  # the loop in float64 keeps every full-width product, and takes longer than what is timed


def adapter_weights(side: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Router [E, D], A [E·R, D] and B [F, E·R] of a side that mixes experts, as copies.

    Args:
        side: `NaiveMixture`, or our layer with its adapter "default".

    Returns:
        The three weights.
    """
    if isinstance(side, NaiveMixture):
        A, B = torch.cat([a.weight for a in side.A]), torch.cat([b.weight for b in side.B], dim=1)
        return side.router.weight.detach().clone(), A.detach(), B.detach()
    router, A, B = side.weights("default")
    return router.detach().clone(), A.detach().clone(), B.detach().clone()


@torch.no_grad()
def set_adapter_weights(side: nn.Module, router: Tensor, A: Tensor, B: Tensor) -> None:
    """Give a side that mixes experts the weights of another, so that the two must agree.

    Args:
        side: `NaiveMixture`, or our layer with its adapter "default".
        router: [E, D].
        A: [E·R, D].
        B: [F, E·R].
    """
    if isinstance(side, NaiveMixture):
        experts = len(side.A)
        side.router.weight.copy_(router)
        for mine, given in zip(side.A, A.chunk(experts, dim=0), strict=True):
            mine.weight.copy_(given)
        for mine, given in zip(side.B, B.chunk(experts, dim=1), strict=True):
            mine.weight.copy_(given)
        return
    for mine, given in zip(side.weights("default"), (router, A, B), strict=True):
        mine.copy_(given)


def check(base: nn.Linear, x: Tensor, dy: Tensor, mixture: Mixture) -> dict[str, float]:
    """Hold every side to the equation, without dropout, before any of them is timed.

    Args:
        base: The frozen linear.
        x: Input [tokens, D].
        dy: Gradient of the output, [tokens, F].
        mixture: Hyper-parameters.

    Returns:
        For each side that mixes experts its worst relative error ‖error‖ / ‖truth‖ over output and gradients.

    Raises:
        AssertionError: If a side is wrong, or plain LoRA with a zero B is not its base.
    """
    x, dy = x.detach()[:CHECKED_TOKENS], dy[:CHECKED_TOKENS]
    mixture = Mixture(mixture.experts, mixture.rank, mixture.alpha, dropout=0.0)
    weights = adapter_weights(linear_side("eager", base, mixture))
    truth = _truth(base, x, dy, weights, mixture.scaling)
    tolerance = TOLERANCE[str(x.dtype).removeprefix("torch.")]
    errors = {}
    for name in ("naive", *OURS):
        side = linear_side(name, base, mixture)
        set_adapter_weights(side, *weights)
        errors[name] = max(_error(mine, true) for mine, true in zip(_results(side, x, dy), truth, strict=True))
        if not errors[name] <= tolerance:
            raise AssertionError(f"{name} is off by {errors[name]:.1e} where {tolerance:.0e} is allowed: not timed.")
    _check_lora(base, x, mixture)
    return errors


def _truth(base: nn.Linear, x: Tensor, dy: Tensor, weights: tuple[Tensor, ...], scaling: float) -> list[Tensor]:
    """Output, and gradients of x, router, A and B, by the loop over experts in float64."""
    base = copy.deepcopy(base).double()
    x, router, A, B = (tensor.detach().double().requires_grad_() for tensor in (x, *weights))
    y = base(x) + mixture_reference(x, route(x, router), A, B, scaling)
    return [y.detach(), *torch.autograd.grad(y, (x, router, A, B), dy.double())]


def _results(side: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = side(x)
    y.backward(dy)
    return [y.detach(), x.grad, *_gradients(side)]


def _gradients(side: nn.Module) -> list[Tensor]:
    """Gradients of router, A and B: those of a module of the same weights are laid out as the weights are."""
    holder = copy.deepcopy(side)
    for copied, original in zip(trained(holder), trained(side), strict=True):
        copied.data = original.grad
    return list(adapter_weights(holder))


def _error(mine: Tensor, truth: Tensor) -> float:
    return ((mine.double() - truth).norm() / truth.norm()).item()


@torch.no_grad()
def _check_lora(base: nn.Linear, x: Tensor, mixture: Mixture) -> None:
    side = linear_side("lora", base, mixture)
    for name, parameter in side.named_parameters():
        if "lora_B" in name:
            parameter.zero_()
    if not torch.equal(side(x), base(x)):
        raise AssertionError("plain LoRA with a zero B is not its base: not timed.")
