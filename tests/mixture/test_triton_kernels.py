"""Triton's mixture against the loop over experts: under Triton's interpreter on the CPU, and on a GPU as it is.

The interpreter has to be chosen before triton is imported, so `test_triton_fused.py` runs this file in a process of its
own: `TRITON_INTERPRET=1 python -m pytest tests/mixture/test_triton_kernels.py`.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

triton = pytest.importorskip("triton", reason="needs the package triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("runs in a process that test_triton_fused.py starts, or on a GPU", allow_module_level=True)

import triton.language as tl  # noqa: E402

from loramoe.mixture import add_triton, mixture_reference, route  # noqa: E402
from loramoe.mixture.dropout import kept_share  # noqa: E402
from loramoe.mixture.triton_fused import CHUNK_N  # noqa: E402
from loramoe.mixture.triton_kernels import _is_kept  # noqa: E402

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
DEVICE = "cpu" if INTERPRETED else "cuda"
SCALING = 2.0
Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)


def operands(
    leading: tuple[int, ...] = (2, 5),
    D: int = 6,
    F: int = 10,
    R: int = 4,
    E: int = 3,
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32),
) -> Operands:
    """x, router, A, B, and the weight of the base, which alone wants no gradient; dtypes of base and experts."""
    base_dtype, dtype = dtypes
    x, base = draw(*leading, D).to(base_dtype), draw(F, D, seed=4).to(base_dtype)
    # With a gate near 1 the gradient of the router would be a small difference of large numbers, which float32 rounds.
    weights = (draw(E, D, seed=1) / D**0.5, draw(E * R, D, seed=2), draw(F, E * R, seed=3))
    router, A, B = (weight.to(dtype).requires_grad_() for weight in weights)
    return x.requires_grad_(), router, A, B, base


def doubled(operands: Operands) -> Operands:
    x, router, A, B, base = (tensor.detach().double() for tensor in operands)
    return x.requires_grad_(), router.requires_grad_(), A.requires_grad_(), B.requires_grad_(), base


def on_triton(x: Tensor, router: Tensor, A: Tensor, B: Tensor, base: Tensor, p: float = 0.0) -> tuple[Tensor, Tensor]:
    return add_triton(x @ base.T, x, router, A, B, SCALING, p)


def reference(operands: Operands, mask: Tensor | float = 1.0) -> tuple[tuple[Tensor, Tensor], Operands]:
    """Output and gates in float64, and what they were made of."""
    given = doubled(operands)
    x, router, A, B, base = given
    gates = route(x, router)
    return (x @ base.T + mixture_reference(x * mask, gates, A, B, SCALING), gates), given


def gradients(outputs: tuple[Tensor, Tensor], operands: Operands) -> tuple[Tensor, ...]:
    """Of a loss that both output and gates have a part in, as they have in training."""
    y, gates = (output.double() for output in outputs)
    loss = (y * draw(*y.shape, seed=5)).sum() + (gates * draw(*gates.shape, seed=6)).sum()
    return torch.autograd.grad(loss, operands[:4])


def scaled_mask(D: int, tokens: int, p: float, seed: int) -> Tensor:
    """Dropout's mask of a [tokens, D] input, as an expert that changes nothing shows it: 0 or 1 / kept."""
    torch.manual_seed(seed)
    ones, eye = torch.ones(tokens, D, device=DEVICE), torch.eye(D, device=DEVICE)
    return add_triton(torch.zeros_like(ones), ones, torch.zeros(1, D, device=DEVICE), eye, eye, 1.0, p)[0].double()


def assert_near(got: tuple[Tensor, ...], want: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    """By norm, as rounding is relative to the largest numbers of a sum."""
    for ours, truth in zip(got, want, strict=True):
        assert ours.shape == truth.shape
        assert (ours.double() - truth).norm() <= tolerance * truth.norm()


def assert_equal_the_loop(given: Operands, tolerance: float = 1e-5) -> None:
    ours, (truth, exact) = on_triton(*given), reference(given)
    assert_near(ours, truth, tolerance)
    assert_near(gradients(ours, given), gradients(truth, exact), tolerance)


@pytest.mark.parametrize("leading", [(2, 5), (7,), (2, 3, 4), (), (0, 5), (2, 0)])
@pytest.mark.parametrize(("R", "E"), [(4, 8), (1, 3), (3, 1), (2, 5), (1, 17)])
def test_equals_the_loop_over_experts(leading: tuple[int, ...], R: int, E: int) -> None:
    assert_equal_the_loop(operands(leading, R=R, E=E))


@pytest.mark.parametrize(("tokens", "D", "F"), [(1, 1, 1), (33, 130, 7), (32, 64, 128), (65, 3, 300)])
def test_edges_of_tiles(tokens: int, D: int, F: int) -> None:
    assert_equal_the_loop(operands((tokens,), D, F))


def test_more_tokens_than_one_part_of_a_weights_gradient() -> None:
    assert_equal_the_loop(operands((CHUNK_N + 40,), D=20, F=20))


# What a base linear, its input, and the experts may be: dtype of each, and whether autocast is on.
KINDS = {
    "float32": (torch.float32, torch.float32, False),
    "bfloat16": (torch.bfloat16, torch.bfloat16, False),
    "float16": (torch.float16, torch.float16, False),
    "bfloat16 beside float32 experts": (torch.bfloat16, torch.float32, False),
    "autocast": (torch.float32, torch.float32, True),
    "autocast, bfloat16 base": (torch.bfloat16, torch.float32, True),
}


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_precision_is_within_its_rounding_and_dropout_the_same_in_backward(kind: str, p: float) -> None:
    *dtypes, autocast = KINDS[kind]
    given = operands((40,), D=70, F=48, E=8, dtypes=tuple(dtypes))
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
        torch.manual_seed(3)
        ours = on_triton(*given, p=p)
    truth, exact = reference(given, scaled_mask(70, 40, p, seed=3))
    assert ours[0].dtype is (torch.bfloat16 if autocast else dtypes[0])
    assert ours[1].dtype is torch.float32
    tolerance = 1e-5 if kind == "float32" else 8 * torch.finfo(ours[0].dtype).eps
    grads = gradients(ours, given)
    assert_near((*ours, *grads), (*truth, *gradients(truth, exact)), tolerance)
    assert [grad.dtype for grad in grads] == [tensor.dtype for tensor in given[:4]]
    if not autocast:  # that rounds what comes before; the router itself rounds nothing
        assert_near(ours[1:], truth[1:])


def test_the_share_that_dropout_keeps() -> None:
    mask = scaled_mask(50, 1000, 0.3, seed=7)
    kept = kept_share(0.3)
    torch.testing.assert_close(mask.unique().cpu(), torch.tensor([0, 1 / kept], dtype=torch.float64), rtol=1e-6, atol=0)
    assert (mask > 0).double().mean().item() == pytest.approx(kept, abs=5 * (kept * 0.3 / mask.numel()) ** 0.5)


def test_elements_are_dropped_independently() -> None:
    """Columns, of which four neighbours come from one draw, and so rows."""
    mask = scaled_mask(24, 2000, 0.5, seed=3)
    assert torch.corrcoef(mask.T).fill_diagonal_(0).abs().max() < 6 / 2000**0.5
    assert torch.corrcoef(mask.T.reshape(-1, 200)).fill_diagonal_(0).abs().max() < 6 / 200**0.5


def test_seeds_obey_the_seed_of_torch() -> None:
    assert torch.equal(scaled_mask(9, 9, 0.5, seed=1), scaled_mask(9, 9, 0.5, seed=1))
    assert not torch.equal(scaled_mask(9, 9, 0.5, seed=1), scaled_mask(9, 9, 0.5, seed=2))


@triton.jit
def keep(mask_ND, first, seed, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr) -> None:
    rows = tl.arange(0, BLOCK_N)
    is_kept = _is_kept(first + rows, 0, seed, 0.5, D, BLOCK_D)
    tl.store(mask_ND + rows[:, None] * D + tl.arange(0, BLOCK_D)[None, :], is_kept)


@pytest.mark.parametrize("first", [0, 2**30, 2**33])
def test_dropout_goes_on_beyond_32_bits(first: int) -> None:
    """16 tokens as rows of one long input are dropped otherwise than those 2^32 draws before them."""
    far, near = (torch.empty(16, 16, dtype=torch.int8, device=DEVICE) for _ in range(2))
    keep[(1,)](far, first + 2**30, 5, D=16, BLOCK_N=16, BLOCK_D=16)
    keep[(1,)](near, first, 5, D=16, BLOCK_N=16, BLOCK_D=16)
    assert 0 < far.float().mean() < 1
    assert not torch.equal(far, near)


def test_checkpointing_remakes_the_same_dropout_and_equal_seeds_give_equal_bits() -> None:
    given = operands((70,), F=300)
    torch.manual_seed(3)
    plain = gradients(on_triton(*given, p=0.4), given)
    torch.manual_seed(3)
    again = gradients(checkpoint(on_triton, *given, 0.4, use_reentrant=False), given)
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


def test_neither_input_nor_gradient_need_be_contiguous() -> None:
    given = operands()
    x = draw(5, 2, 6).float().transpose(0, 1).requires_grad_()
    given = (x, *given[1:])
    ours, (truth, exact) = on_triton(*given), reference(given)
    assert_near(torch.autograd.grad(ours[0].sum(), given[:4]), torch.autograd.grad(truth[0].sum(), exact[:4]))


def test_gates_alone_have_a_gradient() -> None:
    given = operands()
    ours, (truth, exact) = on_triton(*given)[1], reference(given)
    weights = draw(*ours.shape)
    grads = torch.autograd.grad((ours * weights).sum(), given[:2])
    assert_near(grads, torch.autograd.grad((truth[1] * weights).sum(), exact[:2]))


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_a_frozen_input_gets_no_gradient_and_the_others_the_same(p: float) -> None:
    given = operands()
    torch.manual_seed(1)
    expected = gradients(on_triton(*given, p=p), given)[1:]
    torch.manual_seed(1)
    y, gates = on_triton(given[0].detach(), *given[1:], p=p)
    loss = (y.double() * draw(*y.shape, seed=5)).sum() + (gates.double() * draw(*gates.shape, seed=6)).sum()
    torch.testing.assert_close(torch.autograd.grad(loss, given[1:4]), expected, rtol=0, atol=0)


def test_it_is_added_into_the_output_of_the_base_unless_that_is_anothers() -> None:
    x, router, A, B, base = operands(D=10)
    y = x @ base.T
    address = y.data_ptr()
    assert add_triton(y, x, router, A, B, SCALING)[0].data_ptr() == address
    x = x.detach()
    kept, leaf = x.clone(), torch.zeros_like(x).requires_grad_()
    for untouched, before in ((x, kept), (kept[:1].expand(2, 5, 10), kept[:1].clone()), (leaf, torch.zeros_like(x))):
        add_triton(untouched, x, router, A, B, SCALING)
        assert torch.equal(untouched.detach(), before.expand(2, 5, 10))


def test_without_gradients_nothing_is_kept() -> None:
    given = operands()
    expected = on_triton(*given)
    with torch.no_grad():
        y, gates = on_triton(*given)
    torch.testing.assert_close((y, gates), expected, rtol=0, atol=0)
    assert y.grad_fn is None


def test_float64_is_refused() -> None:
    message = r'implementation "triton" computes in float32, bfloat16 or float16; got torch\.float64\. Cast the model'
    with pytest.raises(ValueError, match=message):
        on_triton(*doubled(operands()))
