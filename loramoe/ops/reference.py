"""The mixture as the equation is written: a loop over experts. Slow; tests and benchmarks compare with it."""

from __future__ import annotations

from torch import Tensor


def mixture_reference(x: Tensor, gates: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """The sum of the experts, one expert at a time: `scaling · Σ_e g_e · B_e A_e x`. Arguments as for `mixture`."""
    experts = gates.shape[-1]
    delta = x.new_zeros(*x.shape[:-1], B.shape[0])
    for e, (A_e, B_e) in enumerate(zip(A.chunk(experts, dim=0), B.chunk(experts, dim=1), strict=True)):
        delta = delta + gates[..., e, None] * (x @ A_e.T @ B_e.T) * scaling
    return delta
