"""The mixture as one operation with a backward of its own: what `stacked.py` computes, for less time and memory.

- It is added into the output of the base linear: no second full-width tensor, and no pass to add it.
- Router and experts share one skinny product where dropout and dtype allow, and one pass over x.
- For backward it keeps x, which most often lives anyway, and little beside it. What is cheap to remake is remade:
  dropout from its seed, and of gates and hidden the one that costs less.

Letters as everywhere, and T tokens (all leading dimensions as one), K = E·R. `grad_z` is the gradient of the loss to z:

    hidden_TK = dropout(x) A^T      gates_TE = softmax(x W_router^T)      gated_TK = scaling · gates ∘ hidden
    y_TF     += gated B^T

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
    plan = Plan(scaling, dropout, draw_seed() if dropout else 0, experts_dtype(A))
    if y is x or y._is_view() or (y.is_leaf and y.requires_grad) or not y.is_contiguous():
        y = y.clone(memory_format=torch.contiguous_format)
    if torch.is_grad_enabled():
        result: tuple[Tensor, Tensor] = _Mixture.apply(y, x, router, A, B, plan)  # type: ignore[no-untyped-call]
        return result
    return _add(y, x, router, A, B, plan)[:2]


class _Mixture(torch.autograd.Function):
    """`_add` with its backward."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        """Adds the mixture to y, and returns it with the gates."""
        y, gates, hidden_TK = _add(y, x, router, A, B, plan)
        ctx.mark_dirty(y)
        # Without dropout x and one of the two is what plain LoRA keeps; with it plain LoRA keeps twice as much.
        narrow = plan.dtype != gates.dtype
        kept = (hidden_TK if plan.p or not narrow else None, gates.detach() if plan.p or narrow else None)
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
    """Adds the mixture to y in place; returns it, the gates [..., E] and the hidden [T, K]."""
    with without_autocast(x.device.type):
        x_TD = x.reshape(-1, x.shape[-1])
        hidden_TK, gates_TE = _hidden_and_gates(x_TD, router, A, plan)
        gated_TK = _weigh(hidden_TK, gates_TE, plan)
        y_TF = y.view(len(x_TD), y.shape[-1])
        if y.dtype == plan.dtype:
            y_TF.addmm_(gated_TK, B.to(plan.dtype).T)
        else:  # a bfloat16 base beside float32 experts: the sum is rounded once
            y_TF.add_(gated_TK @ B.to(plan.dtype).T)
        return y, gates_TE.view(*x.shape[:-1], len(router)), hidden_TK


def _hidden_and_gates(x_TD: Tensor, router: Tensor, A: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """The experts' hidden [T, K] and the gates [T, E]."""
    many = len(x_TD) > len(A)  # else joining the weights is dearer than a second pass over x, as in decoding
    if many and plan.p == 0 and plan.dtype == router_dtype(x_TD):  # one product, one pass over x
        both = x_TD.to(plan.dtype) @ torch.cat([A.to(plan.dtype), router.to(plan.dtype)]).T
        return both[:, : len(A)].contiguous(), both[:, len(A) :].softmax(-1)
    seen_TD, _ = _seen(x_TD, plan)
    return _hidden(seen_TD, A, plan), _gates(x_TD, router)


def _seen(x_TD: Tensor, plan: Plan) -> tuple[Tensor, Tensor | None]:
    """What the experts see of x: after dropout, but for its scale; and the mask of the dropout."""
    if plan.p == 0:
        return x_TD.to(plan.dtype), None
    mask_TD = dropout_mask(x_TD, plan.p, plan.seed, plan.dtype)
    return x_TD.to(plan.dtype) * mask_TD, mask_TD


def _hidden(seen_TD: Tensor, A: Tensor, plan: Plan) -> Tensor:
    hidden_TK = seen_TD @ A.to(plan.dtype).T
    return hidden_TK.div_(kept_share(plan.p)) if plan.p else hidden_TK


def _gates(x_TD: Tensor, router: Tensor) -> Tensor:
    dtype = router_dtype(x_TD)
    logits_ET = router.to(dtype) @ x_TD.to(dtype).T  # this way round the product of so few rows is faster
    return logits_ET.T.softmax(-1)


def _weigh(hidden_TK: Tensor, gates_TE: Tensor, plan: Plan) -> Tensor:
    """`scaling · gates ∘ hidden`: a gate weighs the R numbers of its expert."""
    weights_TE = (plan.scaling * gates_TE).to(plan.dtype)
    return (_by_expert(hidden_TK, gates_TE) * weights_TE.unsqueeze(-1)).view_as(hidden_TK)


def _by_expert(hidden_TK: Tensor, gates_TE: Tensor) -> Tensor:
    """The hidden numbers of each expert by themselves, [T, E, R]."""
    E = gates_TE.shape[-1]
    return hidden_TK.view(len(hidden_TK), E, hidden_TK.shape[-1] // E)


def _gradients(
    plan: Plan, saved: tuple[Tensor, ...], grad_y: Tensor, grad_gates: Tensor, needs_x: bool
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """The gradients of x, router, A and B, as the module's equations say."""
    x, router, A, B, hidden, gates = saved
    x_TD = x.reshape(-1, x.shape[-1])
    seen_TD, mask_TD = _seen(x_TD, plan)
    hidden_TK = _hidden(seen_TD, A, plan) if hidden is None else hidden
    gates_TE = _gates(x_TD, router) if gates is None else gates.reshape(-1, len(router))

    grad_TF = grad_y.reshape(-1, grad_y.shape[-1]).to(plan.dtype)
    grad_B = (_weigh(hidden_TK, gates_TE, plan).T @ grad_TF).T
    grad_gated_TK = grad_TF @ B.to(plan.dtype)
    grad_hidden_TK = _weigh(grad_gated_TK, gates_TE, plan)
    along_TER = _by_expert(hidden_TK.to(gates_TE.dtype) * grad_gated_TK, gates_TE)
    grad_gates_TE = plan.scaling * along_TER.sum(-1) + grad_gates.reshape(gates_TE.shape)
    grad_logits_TE = gates_TE * (grad_gates_TE - (gates_TE * grad_gates_TE).sum(-1, keepdim=True))

    grad_seen_TK = grad_hidden_TK.div_(kept_share(plan.p)) if plan.p else grad_hidden_TK
    parts_TE = _parts(grad_logits_TE, plan.dtype)
    weights = (A.to(plan.dtype), torch.cat([router.to(plan.dtype)] * len(parts_TE)))
    grads = (grad_seen_TK, torch.cat(parts_TE, dim=-1))
    grad_A, grad_routers = _weight_gradients(grads, x_TD, seen_TD, mask_TD)
    grad_router = grad_routers.view(len(parts_TE), *router.shape).sum(0)
    grad_x = _input_gradient(grads, weights, x, mask_TD) if needs_x else None
    return grad_x, grad_router.to(router.dtype), grad_A.to(A.dtype), grad_B.to(B.dtype)


def _parts(grad_logits_TE: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The gradient of the logits in the dtype of the products: in two parts where one would round it."""
    coarse_TE = grad_logits_TE.to(dtype)
    if dtype == grad_logits_TE.dtype:
        return [coarse_TE]
    return [coarse_TE, (grad_logits_TE - coarse_TE).to(dtype)]


def _weight_gradients(
    grads: tuple[Tensor, Tensor], x_TD: Tensor, seen_TD: Tensor, mask_TD: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Those of A and of the router (of each of its parts); without dropout in one pass over x."""
    grad_hidden_TK, grad_logits = grads
    if mask_TD is None:
        grad_A, grad_routers = torch.split(torch.cat(grads, dim=-1).T @ seen_TD, [g.shape[-1] for g in grads])
        return grad_A, grad_routers
    return grad_hidden_TK.T @ seen_TD, grad_logits.T @ x_TD.to(seen_TD.dtype)


def _input_gradient(
    grads: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor], x: Tensor, mask_TD: Tensor | None
) -> Tensor:
    """That of x: in its shape and no view, as only then autograd adds to it in place."""
    grad_x = torch.empty(x.shape, dtype=grads[0].dtype, device=x.device)
    grad_TD = grad_x.view(len(grads[0]), x.shape[-1])
    if mask_TD is None:
        torch.mm(torch.cat(grads, dim=-1), torch.cat(weights), out=grad_TD)
    else:
        torch.mm(grads[0], weights[0], out=grad_TD)
        grad_TD.mul_(mask_TD).addmm_(grads[1], weights[1])
    return grad_x.to(x.dtype)
