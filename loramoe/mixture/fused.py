"""The mixture as one operation with a backward of its own: what `stacked.py` computes, for less time and memory.

- It is added into the output of the base linear: no second full-width tensor, and no pass to add it. (An output that is
  a view, as that of a linear with a bias, is copied first.)
- Router and experts share one skinny product where dropout and dtype allow, and one pass over x.
- For backward it keeps x, which most often lives anyway, and little beside it. What is cheap to remake is remade:
  dropout from its seed, and of gates and hidden the one that costs less.

Letters as everywhere, and N tokens (all leading dimensions as one), K = E·R. `grad_z` is the gradient of the loss to z:

    hidden_NK = dropout(x) A^T      gates_NE = softmax(x W_router^T)      gated_NK = scaling · gates ∘ hidden
    y_NF     += gated B^T

    grad_B      = grad_y^T gated                      grad_gated  = grad_y B
    grad_hidden = scaling · gates ∘ grad_gated        grad_gates  = scaling · Σ_R hidden ∘ grad_gated   (+ its own)
    grad_logits = gates ∘ (grad_gates - Σ_E gates ∘ grad_gates)
    grad_A      = grad_hidden^T dropout(x)            grad_router = grad_logits^T x
    grad_x      = dropout(grad_hidden A) + grad_logits W_router
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from loramoe.mixture.dropout import draw_seed, dropout_mask, kept_share
from loramoe.mixture.precision import experts_dtype, router_dtype, without_autocast
from loramoe.mixture.stacked import add_stacked


class Plan(NamedTuple):
    """What is no tensor in the mixture of one linear.

    Attributes:
        scaling: alpha / R (or alpha / √R, rank-stabilised).
        p: Probability of dropping an input of the experts.
        seed: Of the dropout.
        dtype: Of the experts' products.
    """

    scaling: float
    p: float
    seed: int
    dtype: torch.dtype


def add_fused(
    y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, scaling: float, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The output of a linear with the mixture beside it: `y + scaling · B (g ∘ A dropout(x))`.

    Args:
        y: Output of the base linear, [..., F]. Written to, unless it is a view, a leaf that wants a gradient, or x.
        x: Its input, [..., D].
        router: Weight of the router, [E, D].
        A: The experts' down-projections one below the other, [E·R, D].
        B: The experts' up-projections side by side, [F, E·R].
        scaling: alpha / R (or alpha / √R, rank-stabilised).
        dropout: Probability of dropping an input of the experts; 0 in evaluation.

    Returns:
        Output [..., F] in the dtype of y, and the gates [..., E], float32 (float64 for a float64 input).
    """
    if not torch.is_grad_enabled() and not dropout and x.numel() <= len(A) * x.shape[-1]:
        return add_stacked(y, x, router, A, B, scaling)  # so few tokens, as in decoding: calls are what costs
    plan = Plan(scaling, dropout, draw_seed() if dropout else 0, experts_dtype(A))
    y = writable(y, x)
    if torch.is_grad_enabled():
        result: tuple[Tensor, Tensor] = _Mixture.apply(y, x, router, A, B, plan)  # type: ignore[no-untyped-call]
        return result
    return _add(y, x, router, A, B, plan)[:2]


def writable(y: Tensor, x: Tensor) -> Tensor:
    """The output of the base linear, or a copy where the mixture must not be added into it.

    Args:
        y: Output of the base linear.
        x: Its input.

    Returns:
        y; a copy of it if it is a view, not contiguous, a leaf that wants a gradient, or x.
    """
    if y is x or y._is_view() or (y.is_leaf and y.requires_grad) or not y.is_contiguous():
        return y.clone(memory_format=torch.contiguous_format)
    return y


class _Mixture(torch.autograd.Function):
    """`_add` with its backward."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        """Adds the mixture to y, and returns it with the gates."""
        y, gates, hidden_NK = _add(y, x, router, A, B, plan)
        ctx.mark_dirty(y)
        # Without dropout x and one of the two is what plain LoRA keeps; with it plain LoRA keeps twice as much.
        narrow = plan.dtype != gates.dtype
        kept = (hidden_NK if plan.p or not narrow else None, gates.detach() if plan.p or narrow else None)
        ctx.save_for_backward(x, router, A, B, *kept)
        ctx.plan = plan
        return y, gates

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_gates: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of y, x, router, A and B."""
        with without_autocast(grad_y.device.type):
            grads = _gradients(ctx.plan, ctx.saved_tensors, grad_y, grad_gates, ctx.needs_input_grad[1])
        return grad_y, *grads, None


def _add(y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Adds the mixture to y in place; returns it, the gates [..., E] and the hidden [N, K]."""
    with without_autocast(x.device.type):
        x_ND = x.reshape(-1, x.shape[-1])
        hidden_NK, gates_NE = _hidden_and_gates(x_ND, router, A, plan)
        gated_NK = _weigh(hidden_NK, _weights(gates_NE, plan))
        accumulate(y.view(len(x_ND), y.shape[-1]), gated_NK, B)
        return y, gates_NE.view(*x.shape[:-1], len(router)), hidden_NK


def accumulate(y_NF: Tensor, gated_NK: Tensor, B: Tensor) -> None:
    """`y += gated B^T`, in place.

    Args:
        y_NF: Output of the base linear.
        gated_NK: In the dtype of the experts' products.
        B: The experts' up-projections, [F, K].
    """
    weight_KF = B.to(gated_NK.dtype).T
    if y_NF.dtype == gated_NK.dtype:
        y_NF.addmm_(gated_NK, weight_KF)
    else:  # a bfloat16 base beside float32 experts: the sum is rounded once
        y_NF.add_(gated_NK @ weight_KF)


def _hidden_and_gates(x_ND: Tensor, router: Tensor, A: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """The experts' hidden [N, K] and the gates [N, E]."""
    if plan.p == 0 and plan.dtype == router_dtype(x_ND):  # one product, one pass over x
        both = x_ND.to(plan.dtype) @ torch.cat([A.to(plan.dtype), router.to(plan.dtype)]).T
        return both[:, : len(A)].contiguous(), both[:, len(A) :].softmax(-1)
    seen_ND, _ = _seen(x_ND, plan)
    return _hidden(seen_ND, A, plan), _gates(x_ND, router)


def _seen(x_ND: Tensor, plan: Plan) -> tuple[Tensor, Tensor | None]:
    """What the experts see of x: after dropout, but for its scale; and the mask of the dropout."""
    if plan.p == 0:
        return x_ND.to(plan.dtype), None
    mask_ND = dropout_mask(x_ND, plan.p, plan.seed, plan.dtype)
    return x_ND.to(plan.dtype) * mask_ND, mask_ND


def _hidden(seen_ND: Tensor, A: Tensor, plan: Plan) -> Tensor:
    hidden_NK = seen_ND @ A.to(plan.dtype).T
    return hidden_NK.div_(kept_share(plan.p)) if plan.p else hidden_NK


def _gates(x_ND: Tensor, router: Tensor) -> Tensor:
    dtype = router_dtype(x_ND)
    logits_EN = router.to(dtype) @ x_ND.to(dtype).T  # this way round the product of so few rows is faster
    return logits_EN.T.softmax(-1)


def _weights(gates_NE: Tensor, plan: Plan) -> Tensor:
    """`scaling · gates`, [N, E, 1], in the dtype of the products."""
    return (plan.scaling * gates_NE).to(plan.dtype).unsqueeze(-1)


def _weigh(hidden_NK: Tensor, weights_NE1: Tensor) -> Tensor:
    """A gate weighs the R numbers of its expert."""
    return (_by_expert(hidden_NK, weights_NE1.shape[1]) * weights_NE1).view_as(hidden_NK)


def _by_expert(hidden_NK: Tensor, E: int) -> Tensor:
    """The hidden numbers of each expert by themselves, [N, E, R]."""
    return hidden_NK.view(len(hidden_NK), E, hidden_NK.shape[-1] // E)


def _gradients(
    plan: Plan, saved: tuple[Tensor, ...], grad_y: Tensor, grad_gates: Tensor, needs_x: bool
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """The gradients of x, router, A and B, as the module's equations say."""
    x, router, A, B, hidden, gates = saved
    x_ND = x.reshape(-1, x.shape[-1])
    seen_ND, mask_ND = _seen(x_ND, plan)
    hidden_NK = _hidden(seen_ND, A, plan) if hidden is None else hidden
    gates_NE = _gates(x_ND, router) if gates is None else gates.reshape(-1, len(router))
    weights_NE1 = _weights(gates_NE, plan)

    grad_NF = grad_y.reshape(-1, grad_y.shape[-1]).to(plan.dtype)
    grad_B = grad_NF.T @ _weigh(hidden_NK, weights_NE1)
    grad_gated_NK = grad_NF @ B.to(plan.dtype)
    grad_hidden_NK = _weigh(grad_gated_NK, weights_NE1)
    along_NER = _by_expert(hidden_NK.to(gates_NE.dtype) * grad_gated_NK, len(router))
    grad_gates_NE = torch.add(grad_gates.reshape(gates_NE.shape), along_NER.sum(-1), alpha=plan.scaling)
    weighted_NE = gates_NE * grad_gates_NE
    grad_logits_NE = torch.addcmul(weighted_NE, gates_NE, weighted_NE.sum(-1, keepdim=True), value=-1)

    grad_seen_NK = grad_hidden_NK.div_(kept_share(plan.p)) if plan.p else grad_hidden_NK
    parts_NE = _parts(grad_logits_NE, plan.dtype)
    grad_A, grad_router = _weight_gradients(grad_seen_NK, parts_NE, x_ND, seen_ND, mask_ND)
    grad_x = None
    if needs_x:
        weights = (A.to(plan.dtype), router.to(plan.dtype))
        grad_x = _input_gradient((grad_seen_NK, parts_NE[0]), weights, x, mask_ND)
    return grad_x, grad_router.to(router.dtype), grad_A.to(A.dtype), grad_B.to(B.dtype)


def _parts(grad_logits_NE: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The gradient of the logits in the dtype of the products: rounded, and then most of what rounding took from it."""
    coarse_NE = grad_logits_NE.to(dtype)
    if dtype == grad_logits_NE.dtype:
        return [coarse_NE]
    return [coarse_NE, (grad_logits_NE - coarse_NE).to(dtype)]


def _weight_gradients(
    grad_seen_NK: Tensor, parts_NE: list[Tensor], x_ND: Tensor, seen_ND: Tensor, mask_ND: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Those of A and of the router; without dropout in one pass over x."""
    if mask_ND is None:
        both = torch.cat([grad_seen_NK, *parts_NE], dim=-1).T @ seen_ND
        grad_A, routers = both[: grad_seen_NK.shape[-1]], both[grad_seen_NK.shape[-1] :]
    else:
        grad_A, routers = grad_seen_NK.T @ seen_ND, torch.cat(parts_NE, dim=-1).T @ x_ND.to(seen_ND.dtype)
    return grad_A, routers if len(parts_NE) == 1 else torch.add(*routers.chunk(2))


def _input_gradient(
    grads: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor], x: Tensor, mask_ND: Tensor | None
) -> Tensor:
    """That of x: in its shape and no view, as only then autograd adds to it in place."""
    grad_x = torch.empty(x.shape, dtype=grads[0].dtype, device=x.device)
    grad_ND = grad_x.view(len(grads[0]), x.shape[-1])
    if mask_ND is None:
        torch.mm(torch.cat(grads, dim=-1), torch.cat(weights), out=grad_ND)
    else:
        torch.mm(grads[0], weights[0], out=grad_ND)
        grad_ND.mul_(mask_ND).addmm_(grads[1], weights[1])
    return grad_x.to(x.dtype)
