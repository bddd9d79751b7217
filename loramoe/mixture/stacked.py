"""The mixture in plain PyTorch, all experts at once: two skinny products instead of a loop.

Autograd derives its backward and torch.compile its kernels, it can be differentiated twice, and it runs wherever
PyTorch does. What it leaves on the table: a full-width addition beside the output of the base linear, and for backward
the input once more where dropout or a change of dtype made a new one (see `fused.py`).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from loramoe.mixture.precision import experts_dtype, router_dtype, without_autocast


def route(x: Tensor, router: Tensor) -> Tensor:
    """Share of every expert for every token: `softmax(x · W_router^T)`.

    Args:
        x: Input of the linear, [..., D], any floating dtype.
        router: Weight of the router, [E, D], any floating dtype.

    Returns:
        Gates [..., E], float32 (float64 for a float64 input); they sum to 1 over the experts.
    """
    dtype = router_dtype(x)
    with without_autocast(x.device.type):
        return F.softmax(F.linear(x.to(dtype), router.to(dtype)), dim=-1)


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


def add_stacked(
    y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, scaling: float, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The output of a linear with the mixture beside it: `y + scaling · B (g ∘ A dropout(x))`.

    Args:
        y: Output of the base linear, [..., F].
        x: Its input, [..., D].
        router: Weight of the router, [E, D].
        A: The experts' down-projections one below the other, [E·R, D].
        B: The experts' up-projections side by side, [F, E·R].
        scaling: alpha / R (or alpha / √R, rank-stabilised).
        dropout: Probability of dropping an input of the experts; 0 in evaluation.

    Returns:
        Output [..., F] in the dtype of y, and the gates [..., E].
    """
    gates = route(x, router)
    seen = (F.dropout(x, dropout) if dropout else x).to(experts_dtype(A))
    return (y + mixture(seen, gates, A, B, scaling)).to(y.dtype), gates
