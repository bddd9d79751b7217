"""The mixture as the equation is written: a loop over experts. Slow: the truth that tests and benchmarks hold to."""

from __future__ import annotations

from torch import Tensor


def mixture_reference(x: Tensor, gates: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """What the experts add to the output of their linear, expert by expert: `scaling · Σ_e g_e · B_e A_e x`.

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
