"""The mixture of LoRA experts beside one linear, as one operation.

The equation (arXiv 2312.09979), with `W0 x` left to the frozen linear:

    gates_BSE = softmax(x_BSD · W_router^T)                              dense: every token uses every expert
    delta     = (alpha / R) · Σ_e g_e · B_e A_e dropout(x)

Written as it reads, the sum is a Python loop that makes a full-width product per expert. Stacked (A: [E·R, D], B: [F,
E·R]) it is two skinny products, because a gate is a scalar per token and expert, and may as well scale the R numbers
between A and B:  Σ_e g_e · B_e h_e = B · (g ∘ h).  `mixture_reference` is the loop, and the truth of the tests;
`mixture` is what runs.

Pure functions of tensors: nothing here knows of PEFT or transformers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def route(x: Tensor, router: Tensor) -> Tensor:
    """Share of every expert for every token: `softmax(x · W_router^T)`.

    Computed in float32 whatever the model's dtype, autocast included: rounding the gates to bfloat16 hides the small
    imbalances that the balancing constraint is there to see. (float64 stays float64.)

    Args:
        x: Input of the linear, [..., D], any floating dtype.
        router: Weight of the router, [E, D], any floating dtype.

    Returns:
        Gates [..., E], float32 (float64 for a float64 input); they sum to 1 over the experts.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x.device.type):
        return F.softmax(F.linear(x.to(dtype), router.to(dtype)), dim=-1)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A context in which autocast rounds nothing, for the sums that must stay float32.

    Args:
        device_type: Type of the device that computes; some, such as "meta", know no autocast at all.

    Returns:
        The context.
    """
    known = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if known else nullcontext()


def autocast_is_on(device_type: str) -> bool:
    """Whether autocast chooses the dtype of products on a device.

    Args:
        device_type: Type of the device that computes.

    Returns:
        False also where autocast is not known.
    """
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def mixture(x: Tensor, gates: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """What the experts add to the output of their linear: `scaling · B (g ∘ A x)`, all experts at once.

    Args:
        x: Input of the experts, [..., D], after dropout.
        gates: Share of every expert, [..., E], as `route` gives it.
        A: The experts' down-projections one below the other, [E·R, D].
        B: The experts' up-projections side by side, [F, E·R].
        scaling: alpha / R (or alpha / √R, rank-stabilised).

    Returns:
        The addition to the linear's output, [..., F], in the dtype of the products.
    """
    rank = A.shape[0] // gates.shape[-1]
    hidden = F.linear(x, A)  # [..., E·R]
    weights = (gates * scaling).to(hidden.dtype).unsqueeze(-1)  # [..., E, 1]
    gated = hidden.view(*gates.shape, rank) * weights  # [..., E, R]
    return F.linear(gated.flatten(-2), B)


def mixture_reference(x: Tensor, gates: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """The same sum, expert by expert, as the equation is written. Slow: the truth that tests and benchmarks hold to.

    Args:
        x: Input of the experts, [..., D], after dropout.
        gates: Share of every expert, [..., E].
        A: The experts' down-projections one below the other, [E·R, D].
        B: The experts' up-projections side by side, [F, E·R].
        scaling: alpha / R (or alpha / √R, rank-stabilised).

    Returns:
        The addition to the linear's output, [..., F].
    """
    experts = gates.shape[-1]
    delta = x.new_zeros(*x.shape[:-1], B.shape[0])
    for e, (A_e, B_e) in enumerate(zip(A.chunk(experts, dim=0), B.chunk(experts, dim=1), strict=True)):
        delta = delta + gates[..., e, None] * (x @ A_e.T @ B_e.T) * scaling
    return delta
