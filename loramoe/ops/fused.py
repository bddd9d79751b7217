"""The mixture as one operation with a hand-written backward pass: what `eager.py` computes, in less time and memory.

- The mixture is added to the output of the linear layer in place: no second full-width tensor and no pass to add it.
- Router and experts share one skinny product where dropout and dtype allow, in forward and in backward.
- Backward keeps x, which usually lives anyway, the gates and `gated`. The dropout mask is recomputed from its seed.

A dropout mask takes 16 random bits per element, so one 64-bit draw serves four: 2048 x 2048 take 11 ms where
`bernoulli_` takes 45 ms (one thread of an AMD EPYC with AVX2, torch 2.13, 2026-11-30). The probability is therefore a
multiple of 2^-16, 0.0500031 for 0.05, and the scale is made of that very number, so that the mean is exact.

With N tokens (all leading dimensions as one), K = E·R, s = scaling / keep_prob and m = the 0/1 mask of dropout:

    hidden_NK = (m ∘ x) A^T         gates_NE = softmax(x W_router^T)         gated_NK = gates ∘ hidden
    y_NF     += s · gated B^T

    grad_B      = s · grad_y^T gated                  grad_gated  = s · grad_y B
    grad_hidden = gates ∘ grad_gated                  grad_gates  = Σ_R hidden ∘ grad_gated + external gradient
    weighted    = gates ∘ grad_gates                  grad_logits = weighted - gates ∘ Σ_E weighted
    grad_A      = grad_hidden^T (m ∘ x)               grad_router = grad_logits^T x
    grad_x      = m ∘ (grad_hidden A) + grad_logits W_router

`hidden` itself is not needed in backward: gates ∘ Σ_R hidden ∘ grad_gated = Σ_R gated ∘ grad_gated.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from loramoe.ops.eager import add_eager
from loramoe.ops.precision import experts_dtype, router_dtype, without_autocast

_STEPS = 2**16


def draw_seed() -> int:
    """A seed of PyTorch's default CPU generator: checkpointing reproduces it, and no device is synchronised."""
    return int(torch.randint(2**62, (), device="cpu").item())


def keep_prob(p: float) -> float:
    """The probability of keeping an element: 1 - p, p rounded to a multiple of 2^-16, and never 0."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout must be at least 0 and below 1; got {p}. Set lora_dropout=0 for none.")
    return max(_STEPS - round(p * _STEPS), 1) / _STEPS


def dropout_mask(x: Tensor, p: float, seed: int, dtype: torch.dtype) -> Tensor:
    """1 where dropout keeps an element of x, 0 elsewhere, not scaled: equal for equal seed, shape and device."""
    if x.is_meta:
        return torch.empty(x.shape, dtype=dtype, device=x.device)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None, generator=torch.Generator(x.device).manual_seed(seed))
    steps = words.view(torch.int16)[: x.numel()]  # uniform over -2^15 … 2^15 - 1
    # In place and without bool: on a CPU, making a bool tensor and multiplying by one takes several times as long.
    return steps.ge_(_STEPS // 2 - round(keep_prob(p) * _STEPS)).to(dtype).view(x.shape)


_CAST_ROWS = 256  # float32 copies of this many tokens stay in the cache of a CPU


class MixtureArgs(NamedTuple):
    """The arguments of one mixture that are not tensors."""

    scale: float  # alpha / R / keep_prob: what dropout keeps is scaled up
    p: float  # probability of dropping an input of the experts
    seed: int  # of the dropout mask
    dtype: torch.dtype  # of the experts' products


def add_fused(
    y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, scaling: float, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The output of a linear layer plus its mixture; arguments and result as for `add_eager`.

    y is written to, unless `clone_if_aliased` copies it. Few tokens without gradient, as in decoding, take `add_eager`,
    which makes fewer calls; so do the transforms of torch.func, which refuse to write to y.
    """
    few = not torch.is_grad_enabled() and not dropout and x.numel() <= A.numel()
    if few or torch._C._are_functorch_transforms_active():
        return add_eager(y, x, router, A, B, scaling, dropout)
    seed = draw_seed() if dropout else 0
    args = MixtureArgs(scaling / keep_prob(dropout), dropout, seed, experts_dtype(A))
    y = clone_if_aliased(y, x)
    result: tuple[Tensor, Tensor] = _Mixture.apply(y, x, router, A, B, args)  # type: ignore[no-untyped-call]
    return result


def clone_if_aliased(y: Tensor, x: Tensor) -> Tensor:
    """y, or a contiguous copy if y is a view, not contiguous, a leaf that requires a gradient, or x itself."""
    if y is x or y._is_view() or (y.is_leaf and y.requires_grad) or not y.is_contiguous():
        return y.clone(memory_format=torch.contiguous_format)
    return y


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, args: MixtureArgs
    ) -> tuple[Tensor, Tensor]:
        with without_autocast(x.device.type):
            hidden_NK, gates_NE = _hidden_and_gates(x.reshape(-1, x.shape[-1]), router, A, args)
            gated_NK = apply_gates(hidden_NK, gates_NE)
            y_NF, B_KF = y.view(len(gated_NK), len(B)), B.to(args.dtype).T
            if y.dtype == args.dtype:
                y_NF.addmm_(gated_NK, B_KF, alpha=args.scale)
            else:  # such as a bfloat16 base with float32 experts: the sum is rounded once
                y_NF.add_(gated_NK @ B_KF, alpha=args.scale)
        gates = gates_NE.view(*x.shape[:-1], len(router))
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, router, A, B, gates, gated_NK)
        ctx.args = args
        return y, gates

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_gates: Tensor) -> tuple[Tensor | None, ...]:
        x, router, A, B, gates, gated_NK = ctx.saved_tensors
        args: MixtureArgs = ctx.args
        with without_autocast(grad_y.device.type):
            gates_NE = gates.view(len(gated_NK), len(router))
            grad_NF = grad_y.reshape(len(gated_NK), len(B)).to(args.dtype)
            B_FK = B.to(args.dtype)
            # With beta=0, addmm ignores the values of its first argument, and is a scaled product in one call.
            grad_gated_NK = torch.addmm(B_FK[:1], grad_NF, B_FK, beta=0, alpha=args.scale)
            grad_B = torch.addmm(B_FK, grad_NF.T, gated_NK, beta=0, alpha=args.scale)
            grad_hidden_NK = apply_gates(grad_gated_NK, gates_NE)
            grad_logits_NE = _grad_logits(gates_NE, gated_NK, grad_gated_NK, grad_gates)
            grads = _joint_grads if args.p == 0 else _dropout_grads
            grad_x, grad_router, grad_A = grads(ctx, x, router, A, grad_hidden_NK, grad_logits_NE)
        return grad_y, grad_x, grad_router.to(router.dtype), grad_A.to(A.dtype), grad_B.to(B.dtype), None


def _hidden_and_gates(x_ND: Tensor, router: Tensor, A: Tensor, args: MixtureArgs) -> tuple[Tensor, Tensor]:
    """Computes hidden [N, K] and gates [N, E], with one product where dropout and dtype allow."""
    if args.p == 0 and args.dtype == router_dtype(x_ND):
        both = x_ND.to(args.dtype) @ torch.cat([A.to(args.dtype), router.to(args.dtype)]).T
        return both[:, : len(A)], both[:, len(A) :].softmax(-1)
    x_dropped = x_ND.to(args.dtype) if args.p == 0 else dropped(x_ND, args)[0]
    return x_dropped @ A.to(args.dtype).T, _logits(x_ND, router).softmax(-1)


def dropped(x_ND: Tensor, args: MixtureArgs) -> tuple[Tensor, Tensor]:
    """Applies dropout to x, without its scale; returns that and the 0/1 mask, equal in forward and backward."""
    mask_ND = dropout_mask(x_ND, args.p, args.seed, args.dtype)
    return x_ND.to(args.dtype) * mask_ND, mask_ND


def _logits(x_ND: Tensor, router: Tensor) -> Tensor:
    """The router logits [N, E], in float32 at least. For so few experts W_router x^T is faster than x W_router^T."""
    dtype = router_dtype(x_ND)
    weight = router.to(dtype)
    if x_ND.dtype == dtype or not x_ND.is_cpu:
        return (weight @ x_ND.to(dtype).T).T
    return torch.cat([weight @ rows_ND.to(dtype).T for rows_ND in torch.split(x_ND, _CAST_ROWS)], dim=1).T


def apply_gates(hidden_NK: Tensor, gates_NE: Tensor) -> Tensor:
    """Multiplies the R numbers of each expert by its gate."""
    (N, K), E = hidden_NK.shape, gates_NE.shape[-1]
    gated_NER = hidden_NK.view(N, E, K // E) * gates_NE.to(hidden_NK.dtype).unsqueeze(-1)
    return gated_NER.view(N, K)


def _grad_logits(gates_NE: Tensor, gated_NK: Tensor, grad_gated_NK: Tensor, grad_gates: Tensor) -> Tensor:
    """The gradient of the router logits [N, E], from that of `gated` and the external one of the gates."""
    (N, K), E = gated_NK.shape, gates_NE.shape[-1]
    products_NK = gated_NK.to(gates_NE.dtype) * grad_gated_NK
    from_gated_NE = products_NK.view(N, E, K // E).sum(-1)
    weighted_NE = torch.addcmul(from_gated_NE, gates_NE, grad_gates.reshape(N, E))
    return torch.addcmul(weighted_NE, gates_NE, weighted_NE.sum(-1, keepdim=True), value=-1)


def _parts(grad_logits_NE: Tensor, dtype: torch.dtype) -> Tensor:
    """`grad_logits` in the dtype of the products; if that rounds, also the remainder, as E more columns."""
    if dtype == grad_logits_NE.dtype:
        return grad_logits_NE
    rounded_NE = grad_logits_NE.to(dtype)
    return torch.cat([rounded_NE, (grad_logits_NE - rounded_NE).to(dtype)], dim=-1)


def _sum_parts(grad_router: Tensor, E: int) -> Tensor:
    return grad_router if len(grad_router) == E else grad_router[:E] + grad_router[E:]


def _joint_grads(
    ctx: Any, x: Tensor, router: Tensor, A: Tensor, grad_hidden_NK: Tensor, grad_logits_NE: Tensor
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of x, router and A without dropout: one product for x, one for both weights."""
    dtype, K, E = ctx.args.dtype, len(A), len(router)
    grads = torch.cat([grad_hidden_NK, _parts(grad_logits_NE, dtype)], dim=-1)
    grad_weights = grads.T @ x.reshape(-1, x.shape[-1]).to(dtype)
    grad_x = None
    if ctx.needs_input_grad[1]:  # made in the shape of x: autograd accumulates in place only if it is not a view
        grad_x = grads[:, : K + E].reshape(*x.shape[:-1], K + E) @ torch.cat([A.to(dtype), router.to(dtype)])
        grad_x = grad_x.to(x.dtype)
    return grad_x, _sum_parts(grad_weights[K:], E), grad_weights[:K]


def _dropout_grads(
    ctx: Any, x: Tensor, router: Tensor, A: Tensor, grad_hidden_NK: Tensor, grad_logits_NE: Tensor
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of x, router and A with dropout, which the router's input does not have."""
    dtype, E, x_ND = ctx.args.dtype, len(router), x.reshape(-1, x.shape[-1])
    parts = _parts(grad_logits_NE, dtype)
    x_dropped, mask_ND = dropped(x_ND, ctx.args)
    grad_A = grad_hidden_NK.T @ x_dropped
    grad_router = _sum_parts(parts.T @ x_ND.to(dtype), E)
    grad_x = None
    if ctx.needs_input_grad[1]:
        grad_x = grad_hidden_NK.view(*x.shape[:-1], len(A)) @ A.to(dtype)
        grad_x.view(x_ND.shape).mul_(mask_ND).addmm_(parts[:, :E], router.to(dtype))
        grad_x = grad_x.to(x.dtype)
    return grad_x, grad_router, grad_A
