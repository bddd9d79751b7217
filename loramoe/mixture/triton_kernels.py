# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The kernels of `triton_fused.py`, as Triton compiles them: what is not typed here is a pointer or a tile.

Each is a stage of the equations of `fused.py`. A matrix lies row by row, and its name tells its shape (P parts of the F
columns, C chunks of the tokens: sums that are yet to be added up). Numbers of experts and of hidden numbers are padded
to powers of two (BLOCK_E, BLOCK_K), as `tl.dot` wants them, and edges are masked. All sums are float32; a product of
float32 tiles is made by three TF32 products on tensor cores, which keep 22 of the 24 bits of every factor.

A kernel is compiled once for each shape of a linear, whatever the number of tokens. Importing this module needs the
package `triton`.
"""

import triton
import triton.language as tl


@triton.jit
def _load(matrix, rows, columns, height, width):
    """A tile of a [height, width] matrix, 0 beyond its edges."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    return tl.load(matrix + rows[:, None].to(tl.int64) * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(matrix, tile, rows, columns, height, width):
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    tl.store(matrix + rows[:, None].to(tl.int64) * width + columns[None, :], tile, mask=inside)


INTERPRETED = tl.constexpr(not isinstance(_load, triton.JITFunction))


@triton.jit
def _dot(left, right):
    if INTERPRETED:  # the interpreter multiplies bfloat16 as if it were integers
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="tf32x3")


@triton.jit
def _is_kept(rows, start, seed, kept, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Whether dropout keeps x[rows, start : start + BLOCK_D]; 4 neighbours share a draw, as Philox makes 4 numbers."""
    draws = start // 4 + tl.arange(0, BLOCK_D // 4)
    u0, u1, u2, u3 = tl.rand4x(seed, rows[:, None].to(tl.int64) * tl.cdiv(D, 4) + draws[None, :])
    return tl.interleave(tl.interleave(u0, u2), tl.interleave(u1, u3)) >= 1 - kept


@triton.jit
def _owners(R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr):
    """[E, K]: 1 where a hidden number is one of the R of an expert, else 0."""
    return (tl.arange(0, BLOCK_E)[:, None] == tl.arange(0, BLOCK_K)[None, :] // R).to(tl.float32)


@triton.jit
def _weigh(values_NK, gates_NE, owners_EK, scaling):
    """`scaling · gates ∘ values`."""
    return scaling * _dot(gates_NE, owners_EK) * values_NK.to(tl.float32)


@triton.jit(do_not_specialize=["N", "seed"])
def project(
    x_ND, router_ED, A_KD, hidden_NK, gates_NE, gated_NK, N, scaling, kept, seed,
    D: tl.constexpr, E: tl.constexpr, R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """Hidden, gates, and gated of BLOCK_N tokens in one pass over their x."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    e, k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    hidden = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    logits = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = _load(x_ND, rows, d, N, D)
        router = _load(router_ED, e, d, E, D)
        logits += _dot(x.to(tl.float32), tl.trans(router.to(tl.float32)))
        A = _load(A_KD, k, d, E * R, D)
        seen = x.to(A.dtype)
        if DROPOUT:
            seen = tl.where(_is_kept(rows, start, seed, kept, D, BLOCK_D), seen, 0.0)
        hidden += _dot(seen, tl.trans(A))
    if DROPOUT:
        hidden = hidden / kept
    logits = tl.where(e[None, :] < E, logits, float("-inf"))
    powers = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    gates = powers / tl.sum(powers, axis=1)[:, None]
    hidden = hidden.to(hidden_NK.dtype.element_ty)  # rounded first, as the backward knows it
    gated = _weigh(hidden, gates, _owners(R, BLOCK_E, BLOCK_K), scaling)
    _store(hidden_NK, hidden, rows, k, N, E * R)
    _store(gates_NE, gates, rows, e, N, E)
    _store(gated_NK, gated, rows, k, N, E * R)


@triton.jit(do_not_specialize=["N"])
def backward_of_y(
    grad_NF, B_FK, hidden_NK, gates_NE, grad_gated_PNK, grad_B_CFK, N, scaling,
    F: tl.constexpr, E: tl.constexpr, R: tl.constexpr, CHUNK_N: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradient of gated from one part of the columns and that of B from one chunk, reading grad_y once."""
    part, chunk = tl.program_id(0), tl.program_id(1)
    f = part * BLOCK_F + tl.arange(0, BLOCK_F)
    e, k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    owners, B = _owners(R, BLOCK_E, BLOCK_K), _load(B_FK, f, k, F, E * R)
    grad_gated_NK = grad_gated_PNK + part.to(tl.int64) * N * E * R
    grad_B = tl.zeros((BLOCK_F, BLOCK_K), tl.float32)
    for start in range(chunk * CHUNK_N, tl.minimum((chunk + 1) * CHUNK_N, N), BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        grad = _load(grad_NF, rows, f, N, F).to(B.dtype)
        hidden, gates = _load(hidden_NK, rows, k, N, E * R), _load(gates_NE, rows, e, N, E)
        gated = _weigh(hidden, gates, owners, scaling).to(B.dtype)
        grad_B += _dot(tl.trans(grad), gated)
        _store(grad_gated_NK, _dot(grad, B), rows, k, N, E * R)
    _store(grad_B_CFK + chunk.to(tl.int64) * F * E * R, grad_B, f, k, F, E * R)


@triton.jit(do_not_specialize=["N"])
def backward_of_gates(
    grad_gated_PNK, grad_gates_NE, hidden_NK, gates_NE, grad_hidden_NK, grad_logits_NE, N, scaling, kept,
    P: tl.constexpr, E: tl.constexpr, R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradients of hidden (divided by what dropout keeps) and of the router's logits, of BLOCK_N tokens."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    e, k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    owners = _owners(R, BLOCK_E, BLOCK_K)
    grad_gated = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for part in range(P):  # always in the same order
        grad_gated += _load(grad_gated_PNK, part * N + rows, k, part * N + N, E * R)
    hidden, gates = _load(hidden_NK, rows, k, N, E * R), _load(gates_NE, rows, e, N, E)
    along = scaling * _dot(hidden.to(tl.float32) * grad_gated, tl.trans(owners))
    grad_gates = along + _load(grad_gates_NE, rows, e, N, E)
    grad_logits = gates * (grad_gates - tl.sum(gates * grad_gates, axis=1)[:, None])
    _store(grad_hidden_NK, _weigh(grad_gated, gates, owners, scaling) / kept, rows, k, N, E * R)
    _store(grad_logits_NE, grad_logits, rows, e, N, E)


@triton.jit(do_not_specialize=["N", "seed"])
def backward_of_x(
    x_ND, router_ED, A_KD, grad_hidden_NK, grad_logits_NE, grad_x_ND, grad_A_CKD, grad_router_CED, N, kept, seed,
    D: tl.constexpr, E: tl.constexpr, R: tl.constexpr, CHUNK_N: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """The gradient of x (unless None is to take it), and those of A and router from one chunk, reading x once."""
    column, chunk = tl.program_id(0) * BLOCK_D, tl.program_id(1)
    d = column + tl.arange(0, BLOCK_D)
    e, k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    A, router = _load(A_KD, k, d, E * R, D), _load(router_ED, e, d, E, D).to(tl.float32)
    grad_A = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    grad_router = tl.zeros((BLOCK_E, BLOCK_D), tl.float32)
    for start in range(chunk * CHUNK_N, tl.minimum((chunk + 1) * CHUNK_N, N), BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        x = _load(x_ND, rows, d, N, D)
        grad_hidden, grad_logits = _load(grad_hidden_NK, rows, k, N, E * R), _load(grad_logits_NE, rows, e, N, E)
        seen, grad_seen = x.to(A.dtype), _dot(grad_hidden, A)
        if DROPOUT:
            is_kept = _is_kept(rows, column, seed, kept, D, BLOCK_D)
            seen, grad_seen = tl.where(is_kept, seen, 0.0), tl.where(is_kept, grad_seen, 0.0)
        grad_A += _dot(tl.trans(grad_hidden), seen)
        grad_router += _dot(tl.trans(grad_logits), x.to(tl.float32))
        if grad_x_ND is not None:
            _store(grad_x_ND, grad_seen + _dot(grad_logits, router), rows, d, N, D)
    _store(grad_A_CKD + chunk.to(tl.int64) * E * R * D, grad_A, k, d, E * R, D)
    _store(grad_router_CED + chunk.to(tl.int64) * E * D, grad_router, e, d, E, D)
