"""The fused mixture with Triton's kernels for what memory bounds: on CUDA devices, and only where it is asked for.

It is what `fused.py` computes, by its equations. The vendor's product still adds `gated B^T` to the output of the base;
the rest is in the kernels of `triton_kernels.py`. Per token each moves, beside what is only K or E wide (s: bytes of an
element; weights and tiles that are read again come from the cache; P = F / BLOCK_F parts; chunks of CHUNK_N tokens):

    project            reads s·D                 x once: dropout, both skinny products, softmax, scaling
    backward_of_y      reads s·F                 grad_y once, for grad_gated and grad_B
                       writes 4·K·P + 4·K·F/CHUNK_N
    backward_of_gates  reads 4·K·P               adds up grad_gated; back through gates and softmax
    backward_of_x      reads s·D                 x once, for grad_A, grad_router and grad_x
                       writes s·D + 4·(K+E)·D/CHUNK_N

At 4096 → 11008 in bfloat16 with E = 8 and R = 4 that is 8 kB forward, and 22 + 7, 6, and 8 + 9 kB backward. On GPUs its
speed is unmeasured as of 2026-11-22; `python -m benchmarks gpu` is the command that will measure it.

Sums that several programs share go to buffers and are added up afterwards, in one order and without atomics: equal
seeds give equal bits. Dropout is remade from its seed as in `fused.py`, but by Philox in the kernels: other masks.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from loramoe.mixture.dropout import draw_seed, kept_share
from loramoe.mixture.fused import Plan, accumulate, writable
from loramoe.mixture.precision import experts_dtype, without_autocast

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK_N = 32  # tokens at a time: rows of a tensor core's tile twice over, and 512 programs for 16k tokens
CHUNK_N = 1024  # tokens per part of a weight's gradient: at K = 32 the parts are an eighth of what bfloat16 grad_y is
# Bytes of the tile of A or B that a program works with, which sets how many columns of x or grad_y it reads at a time:
# the widest whose tiles and sums the compiler fits into the registers of sm_80 and sm_90 (bfloat16, E = 8, R = 4).
TILE_PROJECT, TILE_OF_Y, TILE_OF_X = 8192, 16384, 4096


def add_triton(
    y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, scaling: float, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The output of a linear with the mixture beside it: `y + scaling · B (g ∘ A dropout(x))`.

    Args:
        y: Output of the base linear, [..., F]. Written to, unless it is a view, a leaf that wants a gradient, or x.
        x: Its input, [..., D], on a CUDA device (on any under Triton's interpreter).
        router: Weight of the router, [E, D].
        A: The experts' down-projections one below the other, [E·R, D].
        B: The experts' up-projections side by side, [F, E·R].
        scaling: alpha / R (or alpha / √R, rank-stabilised).
        dropout: Probability of dropping an input of the experts; 0 in evaluation.

    Returns:
        Output [..., F] in the dtype of y, and the gates [..., E], float32.

    Raises:
        ImportError: If triton is not installed.
        ValueError: If Triton has no kernel for the device or the dtype.
    """
    plan = Plan(scaling, dropout, draw_seed() if dropout else 0, experts_dtype(A))
    _check(x, router, plan)
    y = writable(y, x)
    if torch.is_grad_enabled():
        result: tuple[Tensor, Tensor] = _Mixture.apply(y, x, router, A, B, plan)  # type: ignore[no-untyped-call]
        return result
    return _add(y, x, router, A, B, plan)[:2]


def require_triton() -> None:
    """Say what is missing, if `add_triton` cannot run for want of a package.

    Raises:
        ImportError: If triton is not installed.
    """
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'implementation "triton" needs the package triton, which cannot be imported. `pip install triton` (on '
            'Linux PyTorch for CUDA brings it), or choose "fused" with loramoe.use_implementation.'
        ) from error


def _check(x: Tensor, router: Tensor, plan: Plan) -> None:
    require_triton()
    from loramoe.mixture.triton_kernels import INTERPRETED

    if x.device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f'implementation "triton" runs on a CUDA device; got x on {x.device}. Move the model and its inputs there, '
            'or choose "fused" with loramoe.use_implementation.'
        )
    for dtype in (x.dtype, router.dtype, plan.dtype):
        if dtype not in DTYPES:
            raise ValueError(
                f'implementation "triton" computes in float32, bfloat16 or float16; got {dtype}. Cast the model to '
                'one of them, or choose "fused" with loramoe.use_implementation.'
            )


class _Mixture(torch.autograd.Function):
    """`_add` with its backward."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        """Adds the mixture to y, and returns it with the gates."""
        y, gates, hidden_NK = _add(y, x, router, A, B, plan)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, router, A, B, hidden_NK, gates.detach())
        ctx.plan = plan
        return y, gates

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_gates: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of y, x, router, A and B."""
        x, router, A, B, hidden_NK, gates = ctx.saved_tensors
        gates_NE = _rows(gates)
        with _device_of(x):
            grad_gated_PNK, grad_B = _backward_of_y(ctx.plan, grad_y, B, hidden_NK, gates_NE)
            grads = _backward_of_gates(ctx.plan, grad_gated_PNK, grad_gates, hidden_NK, gates_NE)
            grad_x, grad_router, grad_A = _backward_of_x(ctx.plan, x, router, A, *grads, ctx.needs_input_grad[1])
        return grad_y, grad_x, grad_router, grad_A, grad_B, None


def _add(y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Adds the mixture to y in place; returns it, the gates [..., E] and the hidden [N, K]."""
    with _device_of(x), without_autocast(x.device.type):
        hidden_NK, gates_NE, gated_NK = _project(x, router, A, plan)
        accumulate(y.view(len(gated_NK), y.shape[-1]), gated_NK, B)
        return y, gates_NE.view(*x.shape[:-1], len(router)), hidden_NK


def _project(x: Tensor, router: Tensor, A: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden and gated [N, K] in the dtype of the experts' products, gates [N, E]."""
    from loramoe.mixture.triton_kernels import project

    x_ND = _rows(x)
    (N, D), K, E = x_ND.shape, len(A), len(router)
    hidden_NK, gated_NK = (x.new_empty(N, K, dtype=plan.dtype) for _ in range(2))
    gates_NE = x.new_empty(N, E, dtype=torch.float32)
    project[(_blocks(N, BLOCK_N),)](
        x_ND, _rows(router), _rows(A.to(plan.dtype)), hidden_NK, gates_NE, gated_NK,
        N, plan.scaling, kept_share(plan.p), plan.seed, D,
        DROPOUT=plan.p > 0, BLOCK_D=_width(TILE_PROJECT, K, plan.dtype), **_experts(E, K),
    )  # fmt: skip
    return hidden_NK, gates_NE, gated_NK


def _backward_of_y(plan: Plan, grad_y: Tensor, B: Tensor, hidden_NK: Tensor, gates_NE: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of gated, in parts [P, N, K] that are to be added, and that of B."""
    from loramoe.mixture.triton_kernels import backward_of_y

    grad_NF = _rows(grad_y)
    (N, F), K = grad_NF.shape, B.shape[1]
    BLOCK_F = _width(TILE_OF_Y, K, plan.dtype)
    grad_gated_PNK = gates_NE.new_empty(_blocks(F, BLOCK_F), N, K)
    grad_B_CFK = gates_NE.new_empty(_blocks(N, CHUNK_N), F, K)
    backward_of_y[(len(grad_gated_PNK), len(grad_B_CFK))](
        grad_NF, _rows(B.to(plan.dtype)), hidden_NK, gates_NE, grad_gated_PNK, grad_B_CFK,
        N, plan.scaling, F, CHUNK_N=CHUNK_N, BLOCK_F=BLOCK_F, **_experts(gates_NE.shape[1], K),
    )  # fmt: skip
    return grad_gated_PNK, grad_B_CFK.sum(0).to(B.dtype)


def _backward_of_gates(
    plan: Plan, grad_gated_PNK: Tensor, grad_gates: Tensor, hidden_NK: Tensor, gates_NE: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of the hidden, divided by what dropout keeps as `_backward_of_x` wants it, and of the logits."""
    from loramoe.mixture.triton_kernels import backward_of_gates

    (N, K), E = hidden_NK.shape, gates_NE.shape[1]
    grad_hidden_NK, grad_logits_NE = torch.empty_like(hidden_NK), torch.empty_like(gates_NE)
    backward_of_gates[(_blocks(N, BLOCK_N),)](
        grad_gated_PNK, _rows(grad_gates), hidden_NK, gates_NE, grad_hidden_NK, grad_logits_NE,
        N, plan.scaling, kept_share(plan.p), len(grad_gated_PNK), **_experts(E, K),
    )  # fmt: skip
    return grad_hidden_NK, grad_logits_NE


def _backward_of_x(
    plan: Plan, x: Tensor, router: Tensor, A: Tensor, grad_hidden_NK: Tensor, grad_logits_NE: Tensor, needs_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of x, where it wants one, of the router and of A."""
    from loramoe.mixture.triton_kernels import backward_of_x

    x_ND = _rows(x)
    (N, D), K, E = x_ND.shape, len(A), len(router)
    BLOCK_D, chunks = _width(TILE_OF_X, K, plan.dtype), _blocks(N, CHUNK_N)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device) if needs_x else None
    grad_A_CKD, grad_router_CED = (grad_logits_NE.new_empty(chunks, rows, D) for rows in (K, E))
    backward_of_x[(_blocks(D, BLOCK_D), chunks)](
        x_ND, _rows(router), _rows(A.to(plan.dtype)), grad_hidden_NK, grad_logits_NE, grad_x, grad_A_CKD,
        grad_router_CED, N, kept_share(plan.p), plan.seed, D,
        DROPOUT=plan.p > 0, CHUNK_N=CHUNK_N, BLOCK_D=BLOCK_D, **_experts(E, K),
    )  # fmt: skip
    return grad_x, grad_router_CED.sum(0).to(router.dtype), grad_A_CKD.sum(0).to(A.dtype)


def _device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of x the current one, on which Triton launches."""
    return torch.cuda.device_of(x)  # type: ignore[no-untyped-call]


def _rows(tensor: Tensor) -> Tensor:
    """The tensor as a matrix that lies row by row, copied only if it does not."""
    return tensor.reshape(-1, tensor.shape[-1]).contiguous()


def _blocks(length: int, block: int) -> int:
    return -(-length // block)


def _width(tile: int, K: int, dtype: torch.dtype) -> int:
    """Columns at a time, for a tile of A or B of so many bytes: 16 at least, as `tl.dot` wants."""
    return max(16, tile // (max(32, _padded(K)) * dtype.itemsize))


def _padded(count: int) -> int:
    return max(16, 1 << (count - 1).bit_length())


def _experts(E: int, K: int) -> dict[str, int]:
    """The constants that every kernel is compiled for."""
    return {"E": E, "R": K // E, "BLOCK_N": BLOCK_N, "BLOCK_E": _padded(E), "BLOCK_K": _padded(K)}
