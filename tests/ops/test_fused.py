"""The fused mixture against the loop over experts: values, gradients, precision, and what it does to its arguments."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from loramoe.ops import add_eager, add_fused, mixture_reference, route
from loramoe.ops.fused import _parts, draw_seed, dropout_mask, keep_prob
from tests.ops.operands import SCALING, SHAPES, assert_equals_reference, draw, fused, gradients, operands, reference


@pytest.mark.parametrize("leading", SHAPES)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_equals_the_loop_over_experts(leading: tuple[int, ...], p: float) -> None:
    """With dropout, for the experts only, and by the same mask in backward as in forward."""
    given = operands(leading)
    torch.manual_seed(3)
    ours = fused(*given, p)
    torch.manual_seed(3)
    mask = dropout_mask(given[0], p, draw_seed(), torch.float64) if p else torch.ones_like(given[0])
    assert_equals_reference(ours, given, given[0] * mask / keep_prob(p))


@drawn(tokens=st.integers(0, 9), D=st.integers(1, 9), F=st.integers(1, 9), R=st.integers(1, 4), E=st.integers(1, 6))
def test_equals_the_loop_for_any_size(tokens: int, D: int, F: int, R: int, E: int) -> None:
    given = operands((tokens,), D, F, R, E)
    assert_equals_reference(fused(*given), given)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradients_pass_gradcheck(p: float) -> None:
    def with_the_same_dropout(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        return fused(*tensors, base, p)

    *given, base = operands((2, 3))
    assert torch.autograd.gradcheck(with_the_same_dropout, given)


def test_checkpointing_reproduces_the_dropout() -> None:
    given = operands()
    torch.manual_seed(3)
    plain = gradients(fused(*given, 0.4), given)
    torch.manual_seed(3)
    again = gradients(checkpoint(fused, *given, 0.4, use_reentrant=False), given)
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


# dtype of the frozen layer and its input, dtype of the adapter, whether autocast is on
KINDS = {
    "float32": (torch.float32, torch.float32, False),
    "float16": (torch.float16, torch.float16, False),
    "bfloat16 layer, float32 experts": (torch.bfloat16, torch.float32, False),
    "float64 layer, float32 experts": (torch.float64, torch.float32, False),
    "autocast, bfloat16 layer": (torch.bfloat16, torch.float32, True),
}


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_precision_is_within_its_rounding(kind: str, p: float) -> None:
    """Also the dtypes: the output's is the layer's, the gates' float32 or more, a gradient's that of its tensor."""
    base_dtype, dtype, autocast = KINDS[kind]
    exact = operands((6, 50), D=64, F=48, E=8)  # more tokens than are cast to float32 at a time
    x, base = (exact[i].detach().to(base_dtype) for i in (0, 4))
    router, A, B = (weight.detach().to(dtype) for weight in exact[1:4])
    given = (x.requires_grad_(), router.requires_grad_(), A.requires_grad_(), B.requires_grad_(), base)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        torch.manual_seed(0)
        ours = fused(*given, p)
    torch.manual_seed(0)
    mask = dropout_mask(x, p, draw_seed(), torch.float64) / keep_prob(p) if p else 1.0
    x, *others = (tensor.detach().double().requires_grad_() for tensor in given)
    truth = reference((x, *others), x * mask)
    assert ours[0].dtype is (torch.bfloat16 if autocast else base_dtype)
    assert ours[1].dtype is (torch.float64 if base_dtype is torch.float64 else torch.float32)
    lowest = torch.float32 if dtype is torch.float32 and not autocast else ours[0].dtype
    tolerance = max(1e-5, 8 * torch.finfo(lowest if base_dtype is torch.float64 else ours[0].dtype).eps)
    grads = gradients(ours, given)
    for got, want in zip((*ours, *grads), (*truth, *gradients(truth, (x, *others))), strict=True):
        assert (got.double() - want).norm() / want.norm() < tolerance
    assert [grad.dtype for grad in grads] == [tensor.dtype for tensor in given[:4]]


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gates_and_gradient_of_a_float32_router_lose_nothing_to_bfloat16(p: float) -> None:
    x, router, A, B, _ = (tensor.detach().float().requires_grad_() for tensor in operands((300,), D=64, E=8))
    x, given = x.detach().bfloat16(), (router, A.detach().bfloat16(), B.detach().bfloat16())
    _, gates = add_fused(torch.zeros(300, 10).bfloat16(), x, *given, SCALING, p)
    exact = router.detach().double().requires_grad_()
    truth = route(x.double(), exact)
    torch.testing.assert_close(gates.double(), truth, rtol=1e-4, atol=1e-6)
    (ours,), (want,) = (torch.autograd.grad((g**2).sum(), w) for g, w in ((gates, router), (truth, exact)))
    assert (ours - want).norm() / want.norm() < 2**-8  # one rounding of the sum, none of its terms


def test_what_rounding_the_gradient_of_the_logits_loses_is_a_second_part() -> None:
    exact = draw(50, 8).float()
    rounded, rest = _parts(exact, torch.bfloat16).float().chunk(2, dim=-1)
    assert (rounded - exact).norm() / exact.norm() > 2**-10
    assert (rounded + rest - exact).norm() / exact.norm() < 2**-15
    assert _parts(exact, torch.float32) is exact


def test_autocast_in_backward_rounds_nothing_more() -> None:
    given = tuple(tensor.detach().float().requires_grad_() for tensor in operands())
    plain = gradients(fused(*given), given)
    outputs = fused(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = gradients(outputs, given)
    torch.testing.assert_close(again[1:], plain[1:], rtol=0, atol=0)  # that of x has a product of the layer in it


def test_input_and_gradient_may_be_non_contiguous() -> None:
    given = (draw(5, 2, 6).transpose(0, 1).requires_grad_(), *operands()[1:])
    ours, truth = (torch.autograd.grad(y.sum(), given[:4]) for y in (fused(*given)[0], reference(given)[0]))
    torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_a_frozen_input_changes_no_other_gradient(p: float) -> None:
    given = operands()
    torch.manual_seed(1)
    expected = gradients(fused(*given, p), given)[1:]
    torch.manual_seed(1)
    frozen = (given[0].detach(), *given[1:])
    torch.testing.assert_close(gradients(fused(*frozen, p), given[1:4]), expected)


@pytest.mark.parametrize(
    ("make_y", "written"),
    [
        (lambda x, base: x @ base.T + torch.zeros(2, 5, 1), True),
        (lambda x, base: (x @ base.T).view(10, 10).view(2, 5, 10), False),
        (lambda x, base: (x @ base.T).transpose(0, 1).contiguous().transpose(0, 1), False),
        (lambda x, base: draw(2, 5, 10, seed=9).requires_grad_(), False),
        (lambda x, base: x, False),
    ],
    ids=["fresh", "view", "not contiguous", "leaf", "the input"],
)
def test_only_a_fresh_output_is_written_to(make_y: Callable[[Tensor, Tensor], Tensor], written: bool) -> None:
    x, router, A, B, base = operands(D=10)
    y = make_y(x, base)
    before = y.detach().clone()
    ours = add_fused(y, x, router, A, B, SCALING)
    gates = route(x, router)
    truth = (make_y(x, base) + mixture_reference(x, gates, A, B, SCALING), gates)
    torch.testing.assert_close(ours, truth)
    torch.testing.assert_close(gradients(ours, (x, router, A, B)), gradients(truth, (x, router, A, B)))
    assert (ours[0].data_ptr() == y.data_ptr()) == written
    assert torch.equal(y, before) != written


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("tokens", [12, 13])  # without dropout, eager computes up to E·R = 12 tokens
def test_without_gradients_the_output_is_the_same(tokens: int, p: float) -> None:
    given = operands((tokens,))
    torch.manual_seed(3)
    expected = fused(*given, p)
    for context in (torch.no_grad(), torch.inference_mode()):
        torch.manual_seed(3)
        with context:
            ours = fused(*given, p)
            torch.testing.assert_close(ours, expected)
        assert ours[0].grad_fn is None


@pytest.mark.parametrize(("dtype", "p"), [(torch.float32, 0.0), (torch.bfloat16, 0.05)])
def test_what_backward_keeps(dtype: torch.dtype, p: float) -> None:
    """Beside x and the weights only `gated` and the gates: neither a mask nor x after dropout."""
    x, router, A, B = (tensor.detach().to(dtype).requires_grad_() for tensor in operands((16,), D=64, E=8)[:4])
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        add_fused(torch.zeros(16, 10, dtype=dtype), x, router, A, B, SCALING, p)
    for tensor in (x, router, A, B):
        del kept[tensor.untyped_storage().data_ptr()]
    assert sum(kept.values()) == 16 * (32 * dtype.itemsize + 8 * 4)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_meta_device(p: float) -> None:
    x, router, A, B, base = (tensor.detach().to("meta").requires_grad_() for tensor in operands())
    y, gates = fused(x, router, A, B, base.detach(), p)
    assert (y.shape, gates.shape) == ((2, 5, 10), (2, 5, 3))
    grads = torch.autograd.grad(y.sum() + gates.sum(), (x, router, A, B))
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in (x, router, A, B)]


def test_a_second_derivative_is_an_error_except_in_eager() -> None:
    x, router, A, B, base = operands()

    def twice(add: Callable[..., tuple[Tensor, Tensor]]) -> None:
        y, _ = add(x @ base.T, x, router, A, B, SCALING)
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        grad.sum().backward()

    with pytest.raises(RuntimeError, match="once_differentiable"):
        twice(add_fused)
    twice(add_eager)


def test_transforms_of_torch_func() -> None:
    x, router, A, B, base = operands((7,))

    def loss(router: Tensor, x: Tensor) -> Tensor:
        y, gates = fused(x, router, A, B, base)
        return y.square().sum() + gates.square().sum()

    expected = torch.autograd.grad(loss(router, x), router)[0]
    torch.testing.assert_close(torch.func.grad(loss)(router, x), expected)
    per_token = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(router, x)
    torch.testing.assert_close(per_token.sum(0), expected)
    assert torch.func.hessian(loss)(router, x).shape == (*router.shape, *router.shape)
