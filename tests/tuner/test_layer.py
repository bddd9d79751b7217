"""The layer against the loop over experts, its starting weights, and what may vary around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.utils.other import fsdp_auto_wrap_policy
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.pytorch_utils import Conv1D

from loramoe import LoraMoeConfig
from loramoe.balance.constraint import rows_as_samples
from loramoe.ops import mixture_reference, route
from loramoe.tuner.forward_pass import close_pass, open_pass
from loramoe.tuner.layer import Experts, LoraMoeLayer

D, F = 6, 10


def make_layer(base: nn.Module | None = None, key: str = "the.layer", **options: Any) -> LoraMoeLayer:
    """A layer with random A, B and router, in evaluation mode."""
    torch.manual_seed(0)
    config = LoraMoeConfig(**{"lora_nums": 3, "r": 2, "lora_alpha": 8, "init_lora_weights": False, **options})
    base = base or nn.Linear(D, F)
    return LoraMoeLayer(base, "default", config, key).eval()


def expected(layer: LoraMoeLayer, x: Tensor, name: str = "default") -> Tensor:
    """The base layer's output plus the loop over the experts."""
    router, A, B = layer.weights(name)
    return layer.base_layer(x) + mixture_reference(x, route(x, router), A, B, layer.scaling[name])


@pytest.mark.parametrize(
    ("base", "implementation"),
    [(nn.Linear(D, F), "fused"), (Conv1D(F, D), "fused"), (nn.Linear(D, F), "eager")],
)
def test_equals_the_loop_over_experts(base: nn.Module, implementation: str) -> None:
    layer = make_layer(base).double()
    layer.implementation = implementation
    x = torch.randn(2, 5, D, dtype=torch.float64)
    assert not torch.allclose(layer(x), layer.base_layer(x))
    torch.testing.assert_close(layer(x), expected(layer, x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "r", "scaling"),
    [
        ({}, 2, 8 / 2),
        ({"use_rslora": True}, 2, 8 / math.sqrt(2)),
        ({"rank_pattern": {"up_proj": 5}, "alpha_pattern": {r"layers\.1\..*": 20}}, 5, 20 / 5),
        ({"rank_pattern": {"down_proj": 5}, "alpha_pattern": {r"layers\.0\..*": 20}}, 2, 8 / 2),
    ],
)
def test_rank_and_scaling(options: dict[str, Any], r: int, scaling: float) -> None:
    layer = make_layer(key="model.layers.1.mlp.up_proj", **options)
    assert (layer.r["default"], layer.scaling["default"]) == (r, scaling)
    assert [weight.shape for weight in layer.weights("default")] == [(3, D), (3 * r, D), (F, 3 * r)]


def test_dropout_in_training_only() -> None:
    layer, x = make_layer(lora_dropout=0.5), torch.randn(3, D)
    torch.testing.assert_close(layer(x), expected(layer, x))
    layer.train()
    assert not torch.allclose(layer(x), layer(x))


@pytest.mark.parametrize("zero_B", [True, False])
def test_starting_weights(zero_B: bool) -> None:
    """A and the router as `nn.Linear` draws them, uniform in ±1/√D; B is zero, so that the base model is kept."""
    layer = make_layer(nn.Linear(400, F), init_lora_weights=zero_B)
    router, A, B = layer.weights("default")
    for weight, fan_in in ((router, 400), (A, 400), *(() if zero_B else ((B, 3 * 2),))):
        bound = 1 / math.sqrt(fan_in)
        assert (0.8 if weight is B else 0.97) * bound < weight.abs().max() <= bound
        assert weight.mean().abs() < 0.3 * bound
    x = torch.randn(3, 400)
    assert bool(B.any()) != zero_B
    assert torch.equal(layer(x), layer.base_layer(x)) == zero_B


def test_gates_are_added_to_the_forward_pass_around_the_layer() -> None:
    layer, x = make_layer(), torch.randn(2, 5, D)
    layer(x)  # outside of a pass nothing is kept
    forward_pass = open_pass(layer)
    forward_pass.membership = rows_as_samples(torch.ones(2, 5))
    layer(x)
    assert close_pass(layer) is forward_pass
    gates = forward_pass.gates["default"]["the.layer"]
    assert gates.requires_grad
    torch.testing.assert_close(gates, route(x, layer.weights("default")[0]))


def test_active_adapters_are_summed() -> None:
    layer, x = make_layer(), torch.randn(3, D)
    layer.update_layer("two", LoraMoeConfig(lora_nums=5, r=3, init_lora_weights=False))
    torch.testing.assert_close(layer(x), expected(layer, x))
    layer.set_adapter("two")
    torch.testing.assert_close(layer(x), expected(layer, x, "two"))
    layer.set_adapter(["default", "two"])
    torch.testing.assert_close(layer(x), expected(layer, x) + expected(layer, x, "two") - layer.base_layer(x))


@pytest.mark.parametrize(
    "switch_off", [lambda layer: layer.enable_adapters(False), lambda layer: layer.set_adapter("elsewhere")]
)
def test_without_an_adapter_in_use_the_output_is_the_base_layers(switch_off: Callable[[Any], None]) -> None:
    layer, x = make_layer(), torch.randn(3, D)
    switch_off(layer)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_further_arguments_reach_the_base_layer() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor, factor: float, *, shift: float) -> Tensor:
            return super().forward(x) * factor + shift

    layer, x = make_layer(Scaled(D, F)), torch.randn(3, D)
    mixture = layer(x, 1.0, shift=0.0) - layer.base_layer(x, 1.0, shift=0.0)
    assert mixture.any()
    torch.testing.assert_close(layer(x, 2.0, shift=1.0), layer.base_layer(x, 2.0, shift=1.0) + mixture)


def test_the_base_layer_through_the_layer_and_its_repr() -> None:
    layer = make_layer()
    assert layer.weight is layer.base_layer.weight
    assert layer.bias is layer.base_layer.bias
    assert "(default): Experts(D=6, F=10, R=2, E=3" in repr(layer)


class Wrapped(nn.Linear):
    """A linear layer that computes by another one within, and keeps its last output."""

    def __init__(self) -> None:
        super().__init__(D, F)
        self.inner = nn.Linear(D, F)

    def forward(self, x: Tensor) -> Tensor:
        self.kept: Tensor = self.inner(x)
        return self.kept


@pytest.mark.parametrize("where", ["everywhere", "base layer", "within"])
def test_what_a_hook_keeps_of_the_base_layer_is_not_overwritten(where: str) -> None:
    layer, x = make_layer(Wrapped()), torch.randn(3, D)
    hooked = layer.base_layer.inner if where == "within" else layer.base_layer
    kept: list[Tensor] = []
    register = register_module_forward_hook if where == "everywhere" else hooked.register_forward_hook
    with register(lambda module, args, output: kept.append(output) if module is hooked else None):
        layer(x)
    assert torch.equal(kept[0], hooked.forward(x))


def test_a_mixed_batch_does_not_write_to_the_output_of_the_base_layer() -> None:
    layer, x = make_layer(Wrapped()), torch.randn(3, D)
    layer.implementation = "eager"
    mixed = layer(x, adapter_names=["default", "__base__", "default"])
    assert torch.equal(mixed == layer.base_layer.kept, torch.tensor([[False], [True], [False]]).expand(3, F))
    assert torch.equal(layer.base_layer.kept, layer.base_layer.inner(x))


def test_the_fsdp_policy_of_peft_wraps_the_experts_and_no_base_layer(adapted: Any) -> None:
    model = adapted()
    policy = fsdp_auto_wrap_policy(model)
    wrapped = [module for module in model.modules() if policy(module=module, recurse=False, nonwrapped_numel=0)]
    assert sum(isinstance(module, Experts) for module in wrapped) == 6
    assert {type(module).__name__ for module in wrapped} == {"Experts", "LlamaDecoderLayer"}


@pytest.mark.slow
def test_inductor_compiles_forward_and_backward() -> None:
    layer, x = make_layer(), torch.randn(2, 5, D)
    layer(x).square().sum().backward()
    eager = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, eager[name], rtol=1e-4, atol=1e-5)
