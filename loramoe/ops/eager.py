"""The mixture in plain PyTorch, all experts at once: two skinny products instead of a loop.

Autograd derives the backward pass, and torch.compile makes kernels of it. It costs more than `fused.py`: one full-width
addition to the output of the linear layer, and a copy of the input under dropout or a change of dtype.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from loramoe.ops.precision import experts_dtype, router_dtype, without_autocast


def route(x: Tensor, router: Tensor) -> Tensor:
    """The gates, the share of every expert for every token: `softmax(x · W_router^T)`.

    Args:
        x: Input of the linear layer, [..., D], any floating dtype.
        router: Weight of the router, [E, D], any floating dtype.

    Returns:
        Gates [..., E], float32 (float64 for a float64 input).
    """
    dtype = router_dtype(x)
    with without_autocast(x.device.type):
        return F.softmax(F.linear(x.to(dtype), router.to(dtype)), dim=-1)


def mixture(x: Tensor, gates: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """The sum of the experts [..., F], all at once: `scaling · B (g ∘ A x)`, with the arguments of `add_eager`.

    Args:
        x: Input of the experts, [..., D], after dropout.
        gates: What `route` returned, [..., E].
        A: [E·R, D].
        B: [F, E·R].
        scaling: alpha / R.
    """
    rank = A.shape[0] // gates.shape[-1]
    hidden = F.linear(x, A)  # [..., E·R]
    weights = (gates * scaling).to(hidden.dtype).unsqueeze(-1)  # [..., E, 1]
    gated = hidden.view(*gates.shape, rank) * weights  # [..., E, R]
    return F.linear(gated.flatten(-2), B)


def add_eager(
    y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, scaling: float, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The output of a linear layer plus its mixture: `y + scaling · B (g ∘ A dropout(x))`.

    Args:
        y: Output of the frozen linear layer, [..., F].
        x: Its input, [..., D].
        router: Weight of the router, [E, D].
        A: Down-projections of the experts, stacked, [E·R, D].
        B: Up-projections of the experts, side by side, [F, E·R].
        scaling: alpha / R (or alpha / √R, rank-stabilised).
        dropout: Probability of dropping an input of the experts; 0 in evaluation.

    Returns:
        Output [..., F] in the dtype of y, and the gates [..., E], float32 (float64 for a float64 input).
    """
    gates = route(x, router)
    dropped = (F.dropout(x, dropout) if dropout else x).to(experts_dtype(A))
    return (y + mixture(dropped, gates, A, B, scaling)).to(y.dtype), gates
