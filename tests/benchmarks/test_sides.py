"""The sides: the naive loop is the equation, all sides adapt the same weights, and what is trained is the adapter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.check import adapter_weights, set_adapter_weights
from benchmarks.sides import MLP, MODEL_SIDES, OURS, LlamaShape, Mixture, linear_side, model_side, shared_copy, trained
from loramoe.ops import mixture_reference, route
from loramoe.tuner.layer import LoraMoeLayer

LINEAR_SIDES = ("base", "lora", "naive", *OURS)
SHAPE = LlamaShape(layers=2, hidden=32, intermediate=48, heads=2, vocabulary=64, positions=32)


def linear(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(12, 20, bias=False, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize(("experts", "rank"), [(8, 4), (3, 2), (1, 5)])
def test_the_naive_loop_is_the_equation(experts: int, rank: int) -> None:
    base, x = linear(), torch.randn(2, 7, 12)
    side = linear_side("naive", base, Mixture(experts, rank))
    router, A, B = adapter_weights(side)
    truth = base(x) + mixture_reference(x, route(x, router), A, B, 32 / rank)
    torch.testing.assert_close(side(x), truth, rtol=1e-5, atol=1e-5)


def test_every_expert_of_the_naive_loop_has_a_dropout_of_its_own() -> None:
    base, x = linear(), torch.ones(1, 12)
    side = linear_side("naive", base, Mixture(experts=2, rank=1, dropout=0.5)).train()
    masks = []
    for A in side.A:
        A.register_forward_pre_hook(lambda _, args: masks.append(args[0] == 0))
    side(x)
    assert not torch.equal(*masks)


@pytest.mark.parametrize("name", ["naive", *OURS])
def test_weights_given_to_a_side_are_those_it_gives_back(name: str) -> None:
    given = (torch.randn(3, 12), torch.randn(6, 12), torch.randn(20, 6))
    side = linear_side(name, linear(), Mixture(experts=3, rank=2))
    set_adapter_weights(side, *given)
    for mine, expected in zip(adapter_weights(side), given, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LINEAR_SIDES)
def test_a_linear_side_shares_the_base_and_trains_its_adapter(name: str, dtype: torch.dtype) -> None:
    base = linear(dtype)
    side = linear_side(name, base, Mixture(dropout=0.05))
    adapter = trained(side)
    frozen = [parameter for parameter in side.parameters() if not parameter.requires_grad]
    assert [parameter.data_ptr() for parameter in frozen] == [base.weight.data_ptr()]
    assert {parameter.dtype for parameter in side.parameters()} == {dtype}
    assert all(parameter.count_nonzero() > 0 for parameter in adapter)
    assert side.training
    router = 8 * 12 if name in ("naive", *OURS) else 0
    assert sum(parameter.numel() for parameter in adapter) == (0 if name == "base" else 32 * (12 + 20) + router)


@pytest.mark.parametrize("name", OURS)
def test_a_side_of_ours_runs_the_implementation_of_its_name(name: str) -> None:
    assert linear_side(name, linear(), Mixture()).implementation == name
    layers = [m for m in model_side(name, llama(), Mixture()).modules() if isinstance(m, LoraMoeLayer)]
    assert [layer.implementation for layer in layers] == [name] * len(MLP) * SHAPE.layers


def test_unknown_sides_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a single linear has the sides .*; got side='xlora'"):
        linear_side("xlora", linear(), Mixture())
    with pytest.raises(ValueError, match=r"a whole model has the sides .*; got side='other'"):
        model_side("other", llama(), Mixture())


def llama() -> nn.Module:
    torch.manual_seed(0)
    return SHAPE.build(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", MODEL_SIDES)
def test_a_model_side_shares_the_base_and_trains_its_adapter(name: str) -> None:
    base, ids = llama(), torch.arange(12).reshape(2, 6)
    of_base = {parameter.data_ptr() for parameter in base.parameters()}
    side = model_side(name, base, Mixture())
    side(input_ids=ids, labels=ids, task_types=torch.tensor([0, 1]) if name in OURS else None).loss.backward()
    frozen = {parameter.data_ptr() for parameter in side.parameters() if not parameter.requires_grad}
    assert frozen == of_base
    assert bool(trained(side)) == (name != "base")
    assert all(parameter.grad is not None for parameter in trained(side))
    assert not trained(base)


def test_what_is_put_into_a_shared_copy_does_not_appear_in_the_original() -> None:
    model = nn.Sequential(linear())
    copied = shared_copy(model)
    copied[0] = nn.Identity()
    assert isinstance(model[0], nn.Linear)
