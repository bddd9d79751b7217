"""The fused mixture against the loop over experts: values and gradients, whatever it is given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from loramoe.mixture import add_fused, add_stacked, mixture_reference, route
from loramoe.mixture.dropout import draw_seed, dropout_mask, kept_share

SCALING = 2.0
Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operands(leading: tuple[int, ...] = (2, 5), D: int = 6, F: int = 10, R: int = 4, E: int = 3) -> Operands:
    """x, router, A, B, and the weight of the base linear; all but the last want a gradient."""
    x, router, A, B = draw(*leading, D), draw(E, D, seed=1), draw(E * R, D, seed=2), draw(F, E * R, seed=3)
    return x.requires_grad_(), router.requires_grad_(), A.requires_grad_(), B.requires_grad_(), draw(F, D, seed=4)


def reference(x: Tensor, router: Tensor, A: Tensor, B: Tensor, base: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    gates = route(x, router)
    return x @ base.T + mixture_reference(seen, gates, A, B, SCALING), gates


def fused(x: Tensor, router: Tensor, A: Tensor, B: Tensor, base: Tensor, p: float = 0.0) -> tuple[Tensor, Tensor]:
    return add_fused(x @ base.T, x, router, A, B, SCALING, p)


def gradients(outputs: tuple[Tensor, Tensor], operands: Operands) -> tuple[Tensor, ...]:
    """Of a loss that both output and gates have a part in, as they have in training."""
    y, gates = (output.double() for output in outputs)
    loss = (y * draw(*y.shape, seed=5)).sum() + (gates * draw(*gates.shape, seed=6)).sum()
    return torch.autograd.grad(loss, operands[:4])


@pytest.mark.parametrize("leading", [(2, 5), (7,), (2, 3, 4), (), (0, 5), (2, 0)])
@pytest.mark.parametrize(("R", "E"), [(4, 8), (1, 3), (3, 1), (2, 5)])
def test_equals_the_loop_over_experts(leading: tuple[int, ...], R: int, E: int) -> None:
    given = operands(leading, R=R, E=E)
    ours, truth = fused(*given), reference(*given, seen=given[0])
    torch.testing.assert_close(ours, truth)
    torch.testing.assert_close(gradients(ours, given), gradients(truth, given))


@given(tokens=st.integers(0, 9), D=st.integers(1, 9), F=st.integers(1, 9), R=st.integers(1, 4), E=st.integers(1, 6))
def test_equals_the_loop_for_any_shape(tokens: int, D: int, F: int, R: int, E: int) -> None:
    given = operands((tokens,), D, F, R, E)
    ours, truth = fused(*given), reference(*given, seen=given[0])
    torch.testing.assert_close(ours, truth)
    torch.testing.assert_close(gradients(ours, given), gradients(truth, given))


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradients_pass_gradcheck(p: float) -> None:
    def with_the_same_dropout(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        return fused(*tensors, p=p)

    *given, base = operands((2, 3))
    assert torch.autograd.gradcheck(lambda *tensors: with_the_same_dropout(*tensors, base), given)


def test_dropout_is_for_the_experts_alone_and_the_same_in_backward() -> None:
    given = operands()
    torch.manual_seed(3)
    ours = fused(*given, p=0.4)
    torch.manual_seed(3)
    mask = dropout_mask(given[0], 0.4, draw_seed(), torch.float64)
    assert 0 < mask.mean() < 1
    truth = reference(*given, seen=given[0] * mask / kept_share(0.4))
    torch.testing.assert_close(ours, truth)
    torch.testing.assert_close(gradients(ours, given), gradients(truth, given))


def test_checkpointing_remakes_the_same_dropout() -> None:
    given = operands()
    torch.manual_seed(3)
    plain = gradients(fused(*given, p=0.4), given)
    torch.manual_seed(3)
    again = gradients(checkpoint(fused, *given, 0.4, use_reentrant=False), given)
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


@pytest.mark.parametrize("tokens", [8, 40])
def test_dropout_is_the_same_without_gradients(tokens: int) -> None:
    given = operands((tokens,))
    torch.manual_seed(3)
    expected = fused(*given, p=0.4)
    torch.manual_seed(3)
    with torch.no_grad():
        torch.testing.assert_close(fused(*given, p=0.4), expected)


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
def test_every_precision_is_within_its_rounding(kind: str, p: float) -> None:
    """And the output keeps the dtype of the base, gates float32, gradients the dtype of what they belong to."""
    base_dtype, dtype, autocast = KINDS[kind]
    exact = operands((4, 16), D=64, F=48, E=8)
    x, base = (exact[i].detach().to(base_dtype) for i in (0, 4))
    router, A, B = (weight.detach().to(dtype) for weight in exact[1:4])
    given = (x.requires_grad_(), router.requires_grad_(), A.requires_grad_(), B.requires_grad_(), base)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        torch.manual_seed(0)
        ours = fused(*given, p=p)
    torch.manual_seed(0)
    mask = dropout_mask(x, p, draw_seed(), torch.float64) / kept_share(p) if p else 1.0
    doubled = [tensor.detach().double().requires_grad_() for tensor in given[:4]]
    truth = reference(*doubled, base.double(), seen=doubled[0] * mask)
    assert ours[0].dtype is (torch.bfloat16 if autocast else base_dtype)
    assert ours[1].dtype is torch.float32
    tolerance = 1e-5 if kind == "float32" else 8 * torch.finfo(ours[0].dtype).eps
    grads = gradients(ours, given)
    for got, want in zip((*ours, *grads), (*truth, *gradients(truth, (*doubled, base))), strict=True):
        assert (got.double() - want).norm() / want.norm() < tolerance
    assert [grad.dtype for grad in grads] == [tensor.dtype for tensor in given[:4]]


def test_autocast_in_backward_rounds_nothing_more() -> None:
    given = tuple(tensor.detach().float().requires_grad_() for tensor in operands())
    _, *plain = gradients(fused(*given), given)
    outputs = fused(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, *of_the_weights = gradients(outputs, given)  # that of x has the product of the base linear in it
    torch.testing.assert_close(of_the_weights, plain, rtol=0, atol=0)


def test_neither_input_nor_gradient_need_be_contiguous() -> None:
    given = operands()
    x = draw(5, 2, 6).transpose(0, 1).requires_grad_()
    given = (x, *given[1:])
    ours, truth = fused(*given), reference(*given, seen=x)
    torch.testing.assert_close(
        torch.autograd.grad(ours[0].sum(), given[:4]), torch.autograd.grad(truth[0].sum(), given[:4])
    )


def test_gates_alone_have_a_gradient() -> None:
    given = operands()
    ours, truth = fused(*given)[1], route(*given[:2])
    weights = draw(*ours.shape)
    torch.testing.assert_close(
        torch.autograd.grad((ours * weights).sum(), given[:2]), torch.autograd.grad((truth * weights).sum(), given[:2])
    )


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_a_frozen_input_gets_no_gradient_and_the_others_the_same(p: float) -> None:
    given = operands()
    frozen = (given[0].detach(), *given[1:])
    torch.manual_seed(1)
    expected = gradients(fused(*given, p=p), given)[1:]
    torch.manual_seed(1)
    y, gates = fused(*frozen, p=p)
    loss = (y * draw(*y.shape, seed=5)).sum() + (gates * draw(*gates.shape, seed=6)).sum()
    torch.testing.assert_close(torch.autograd.grad(loss, given[1:4]), expected)


def test_it_is_added_into_the_output_of_the_base() -> None:
    x, router, A, B, base = operands()
    y = x @ base.T
    address = y.data_ptr()
    assert add_fused(y, x, router, A, B, SCALING)[0].data_ptr() == address


@pytest.mark.parametrize(
    "make_y",
    [
        lambda x, base: x @ base.T + torch.zeros(2, 5, 1),
        lambda x, base: (x @ base.T).view(10, 10).view(2, 5, 10),
        lambda x, base: (x @ base.T).transpose(0, 1).contiguous().transpose(0, 1),
        lambda x, base: x.detach()[..., :1].expand(2, 5, 10),
        lambda x, base: draw(2, 5, 10, seed=9).requires_grad_(),
    ],
    ids=["fresh", "view", "not contiguous", "expanded", "leaf"],
)
def test_whatever_the_base_answers_with(make_y: Callable[[Tensor, Tensor], Tensor]) -> None:
    given = operands()
    x, router, A, B, base = given
    y = make_y(x, base)
    before = y.detach().clone()
    ours = add_fused(y, x, router, A, B, SCALING)
    gates = route(x, router)
    truth = (make_y(x, base) + mixture_reference(x, gates, A, B, SCALING), gates)
    torch.testing.assert_close(ours, truth)
    torch.testing.assert_close(gradients(ours, given), gradients(truth, given))
    if y.requires_grad and y.is_leaf:
        assert torch.equal(y, before)


def test_a_base_that_answers_with_its_input() -> None:
    x, router, A, B, _ = operands(D=10)
    x = x.detach()
    before = x.clone()
    add_fused(x, x, router, A, B, SCALING)
    assert torch.equal(x, before)


@pytest.mark.parametrize("tokens", [1, 12, 13, 40], ids=lambda n: f"{n} tokens")
def test_without_gradients_nothing_is_kept(tokens: int) -> None:
    """Up to E·R = 12 tokens, as in decoding, it is the stacked form that computes."""
    given = operands((tokens,))
    expected = fused(*given)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            ours = fused(*given)
            torch.testing.assert_close(ours, expected)
        assert ours[0].grad_fn is None


def saved_bytes(forward: Callable[[], object], weights: list[Tensor]) -> int:
    """Bytes that a forward keeps for its backward, those of weights apart."""
    kept: dict[int, int] = {}
    apart = [weight.untyped_storage().data_ptr() for weight in weights]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(kept.values())


@pytest.mark.parametrize(
    ("dtype", "p", "beside_x"),
    [
        (torch.float32, 0.0, 32 * 4),  # hidden
        (torch.bfloat16, 0.0, 8 * 4),  # gates
        (torch.float32, 0.05, 32 * 4 + 8 * 4),  # both: dropout keeps neither mask nor what it left of x
        (torch.bfloat16, 0.05, 32 * 2 + 8 * 4),
    ],
)
def test_what_is_kept_for_backward(dtype: torch.dtype, p: float, beside_x: int) -> None:
    x, *weights = (tensor.detach().to(dtype).requires_grad_() for tensor in operands((16,), D=64, E=8))
    per_token = saved_bytes(lambda: fused(x, *weights[:3], weights[3].detach(), p), weights) / 16
    assert per_token == 64 * dtype.itemsize + beside_x


def test_permuting_the_experts_changes_nothing() -> None:
    x, router, A, B, base = operands(R=2, E=4)
    order = torch.tensor([2, 0, 3, 1])
    permuted = (A.view(4, 2, 6)[order].reshape(8, 6), B.view(10, 4, 2)[:, order].reshape(10, 8))
    torch.testing.assert_close(fused(x, router[order], *permuted, base)[0], fused(x, router, A, B, base)[0])


def test_a_second_derivative_is_refused_and_the_stacked_form_has_it() -> None:
    x, router, A, B, base = operands()

    def twice(add: Callable[..., tuple[Tensor, Tensor]]) -> None:
        y, _ = add(x @ base.T, x, router, A, B, SCALING)
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        grad.sum().backward()

    with pytest.raises(RuntimeError, match="once_differentiable"):
        twice(add_fused)
    twice(add_stacked)
