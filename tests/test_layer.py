"""The layer against the equation, read expert by expert in float64; and what may vary around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from transformers.pytorch_utils import Conv1D

from loramoe.config import LoraMoeConfig
from loramoe.layer import LoraMoeLayer, use_implementation
from loramoe.mixture import mixture, mixture_reference, route
from loramoe.mixture.dropout import draw_seed, dropout_mask, kept_share

D, OUT = 6, 10


def make_layer(base: nn.Module | None = None, **options: Any) -> LoraMoeLayer:
    """A layer with random A, B and router, in evaluation mode."""
    torch.manual_seed(0)
    options = {"lora_nums": 3, "r": 2, "lora_alpha": 8, "init_lora_weights": False, "blc_weight": 0} | options
    return LoraMoeLayer(base or nn.Linear(D, OUT), "default", LoraMoeConfig(**options)).eval()


def expected(layer: LoraMoeLayer, x: Tensor, dropped: Tensor | None = None, name: str = "default") -> Tensor:
    """The equation in float64: base, plus the loop over the experts."""
    x64 = x.double()
    router, A, B = (part[name].weight.double() for part in (layer.loramoe_router, layer.loramoe_A, layer.loramoe_B))
    gates = torch.softmax(x64 @ router.T, dim=-1)
    seen = x64 if dropped is None else dropped.double()
    return layer.base_layer(x).double() + mixture_reference(seen, gates, A, B, layer.scaling[name])


@pytest.mark.parametrize("lora_nums", [1, 2, 3, 8])
@pytest.mark.parametrize("r", [1, 4])
def test_forward_is_the_equation(lora_nums: int, r: int) -> None:
    layer = make_layer(lora_nums=lora_nums, r=r)
    x = torch.randn(2, 5, D)
    assert not torch.allclose(layer(x), layer.base_layer(x))
    torch.testing.assert_close(layer(x).double(), expected(layer, x), rtol=1e-5, atol=1e-5)


def test_forward_is_the_equation_to_the_last_digits_in_float64() -> None:
    layer = make_layer().double()
    x = torch.randn(2, 5, D, dtype=torch.float64)
    torch.testing.assert_close(layer(x), expected(layer, x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("base", [nn.Linear(D, OUT, bias=False), Conv1D(OUT, D)], ids=["without bias", "Conv1D"])
def test_any_linear_can_be_the_base(base: nn.Module) -> None:
    layer = make_layer(base)
    assert (layer.in_features, layer.out_features) == (D, OUT)
    x = torch.randn(4, D)
    torch.testing.assert_close(layer(x).double(), expected(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (2, 3, 4), (0,), (2, 0)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    layer = make_layer()
    x = torch.randn(*shape, D)
    assert layer(x).shape == (*shape, OUT)
    torch.testing.assert_close(layer(x).double(), expected(layer, x), rtol=1e-5, atol=1e-5)


def test_input_need_not_be_contiguous() -> None:
    layer = make_layer()
    x = torch.randn(2, D, 5).transpose(1, 2)
    assert not x.is_contiguous()
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize(("use_rslora", "scaling"), [(False, 8 / 2), (True, 8 / math.sqrt(2))])
def test_scaling(use_rslora: bool, scaling: float) -> None:
    layer = make_layer(use_rslora=use_rslora)
    assert layer.scaling["default"] == scaling
    x = torch.randn(3, D)
    torch.testing.assert_close(layer(x).double(), expected(layer, x), rtol=1e-5, atol=1e-5)


def test_patterns_give_a_linear_its_own_rank_and_alpha() -> None:
    config = LoraMoeConfig(r=2, lora_alpha=8, rank_pattern={"up_proj": 5}, alpha_pattern={r"layers\.1\..*": 20})
    one = LoraMoeLayer(nn.Linear(D, OUT), "default", config, "model.layers.1.mlp.up_proj")
    other = LoraMoeLayer(nn.Linear(D, OUT), "default", config, "model.layers.0.mlp.down_proj")
    assert (one.r["default"], one.lora_alpha["default"], one.scaling["default"]) == (5, 20, 4)
    assert one.loramoe_A["default"].weight.shape == (8 * 5, D)
    assert (other.r["default"], other.lora_alpha["default"], other.scaling["default"]) == (2, 8, 4)


def test_dropout_is_off_in_evaluation() -> None:
    layer = make_layer(lora_dropout=0.5)
    x = torch.randn(3, D)
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(layer(x).double(), expected(layer, x), rtol=1e-5, atol=1e-5)


def test_all_experts_share_one_dropout_mask_and_the_router_sees_the_input_whole() -> None:
    layer = make_layer(lora_dropout=0.5).train()
    x = torch.randn(2, 5, D)
    torch.manual_seed(3)
    y = layer(x)
    torch.manual_seed(3)
    dropped = x * dropout_mask(x, 0.5, draw_seed(), x.dtype) / kept_share(0.5)
    assert (dropped == 0).any()
    torch.testing.assert_close(y.double(), expected(layer, x, dropped), rtol=1e-5, atol=1e-5)


def test_no_dropout_draws_no_random_numbers() -> None:
    layer = make_layer(lora_dropout=0.0).train()
    before = torch.get_rng_state()
    layer(torch.randn(3, D, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())


def test_bfloat16_base_with_float32_adapter_rounds_once() -> None:
    base = nn.Linear(D, OUT).bfloat16()
    layer = make_layer(base)
    for part in (layer.loramoe_A, layer.loramoe_B, layer.loramoe_router):
        part.float()
    x = torch.randn(2, 5, D).bfloat16()
    router, A, B = layer.weights("default")
    delta = mixture(x.float(), route(x, router), A, B, layer.scaling["default"])
    assert delta.dtype is torch.float32
    assert torch.equal(layer(x), (base(x).float() + delta).bfloat16())


@pytest.fixture(params=["float32", "bfloat16 adapter", "float16 adapter", "autocast", "autocast, bfloat16 adapter"])
def precision(request: pytest.FixtureRequest) -> tuple[torch.dtype, bool]:
    """The dtype of base and adapter, and whether autocast is on."""
    dtype = {"b": torch.bfloat16, "f": torch.float16}.get(request.param.split(", ")[-1][0], torch.float32)
    return (torch.float32 if request.param == "float32" else dtype), "autocast" in request.param


def test_router_and_softmax_are_float32_whatever_the_dtype(precision: tuple[torch.dtype, bool]) -> None:
    dtype, autocast = precision
    layer = make_layer(nn.Linear(D, OUT).to(dtype))
    assert layer.loramoe_router["default"].weight.dtype is dtype
    x = torch.randn(2, 5, D).to(dtype)
    layer.watched = True
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = layer(x)
    gates = layer.gates["default"]
    assert gates.dtype is torch.float32
    exact = torch.softmax(F.linear(x.double(), layer.loramoe_router["default"].weight.double()), -1)
    torch.testing.assert_close(gates.double(), exact, rtol=1e-6, atol=0)
    assert y.dtype is (torch.bfloat16 if autocast else dtype)
    tolerance = 8 * torch.finfo(y.dtype).eps
    error = (y.double() - expected(layer, x)).abs().max() / expected(layer, x).abs().max()
    assert error < tolerance


def test_a_second_call_while_watched_is_refused() -> None:
    layer, x = make_layer(), torch.randn(3, D)
    layer.watched = True
    layer(x)
    with pytest.raises(ValueError, match=r"a linear was called twice in one forward, .* its first call would be lost"):
        layer(x)
    layer.gates = {}
    layer(x)


def test_gates_are_kept_only_while_watched() -> None:
    layer = make_layer()
    layer(torch.randn(3, D))
    assert layer.gates == {}
    layer.watched = True
    layer(torch.randn(3, D))
    assert layer.gates["default"].shape == (3, 3)
    assert layer.gates["default"].requires_grad


def test_active_adapters_are_summed() -> None:
    layer = make_layer()
    layer.update_layer("two", LoraMoeConfig(lora_nums=5, r=3, init_lora_weights=False))
    x = torch.randn(3, D)
    base, one = layer.base_layer(x), layer(x)
    layer.set_adapter("two")
    torch.testing.assert_close(layer(x).double(), expected(layer, x, name="two"), rtol=1e-5, atol=1e-5)
    two = layer(x)
    layer.set_adapter(["default", "two"])
    torch.testing.assert_close(layer(x), one + two - base)


@pytest.mark.parametrize("training", [True, False])
def test_an_adapter_starts_in_the_mode_of_the_base(training: bool) -> None:
    layer = LoraMoeLayer(nn.Linear(D, OUT).train(training), "default", LoraMoeConfig(lora_dropout=0.5))
    layer.update_layer("two", LoraMoeConfig(lora_dropout=0.5))
    assert {module.training for module in layer.modules()} == {training}


def test_an_adapter_of_other_linears_is_passed_over() -> None:
    layer = make_layer()
    layer.set_adapter("elsewhere")
    x = torch.randn(3, D)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_disabled_is_the_base_bit_for_bit() -> None:
    layer = make_layer()
    layer.enable_adapters(False)
    x = torch.randn(3, D)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_starts_as_the_base_bit_for_bit() -> None:
    layer = make_layer(init_lora_weights=True)
    x = torch.randn(3, D)
    assert torch.equal(layer(x), layer.base_layer(x))
    assert not layer.loramoe_B["default"].weight.any()
    assert layer.loramoe_A["default"].weight.std() > 0
    assert layer.loramoe_router["default"].weight.std() > 0


def test_the_base_gets_what_else_it_is_called_with() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor, factor: float, *, shift: float) -> Tensor:
            return super().forward(x) * factor + shift

    layer = make_layer(Scaled(D, OUT))
    x = torch.randn(3, D)
    delta = layer(x, 1.0, shift=0.0) - layer.base_layer(x, 1.0, shift=0.0)
    assert delta.any()
    torch.testing.assert_close(layer(x, 2.0, shift=1.0), layer.base_layer(x, 2.0, shift=1.0) + delta)


@pytest.mark.parametrize("call", [lambda layer: layer.merge(), lambda layer: layer.unmerge()], ids=["merge", "unmerge"])
def test_merging_is_refused(call: Callable[[LoraMoeLayer], None]) -> None:
    with pytest.raises(NotImplementedError, match=r"cannot be merged: its experts are mixed by a router .* unload\(\)"):
        call(make_layer())


def test_conversion_to_lora_is_declined() -> None:
    assert make_layer().supports_lora_conversion() is False


def test_repr_says_whose_layer_it_is_and_what_computes() -> None:
    layer = make_layer()
    assert repr(layer).startswith("loramoe.LoraMoeLayer(")
    assert "implementation='fused'" in repr(layer)


@pytest.mark.parametrize("name", ["fused", "stacked"])  # triton's is tested beside its kernels
def test_every_implementation_is_the_equation(name: str) -> None:
    layer = make_layer()
    use_implementation(nn.Sequential(layer), name)
    assert layer.implementation == name
    x = torch.randn(2, 5, D)
    torch.testing.assert_close(layer(x).double(), expected(layer, x), rtol=1e-5, atol=1e-5)


def test_an_unknown_implementation() -> None:
    message = r"implementation must be one of \['fused', 'stacked', 'triton'\]; got 'loop'\."
    with pytest.raises(ValueError, match=message):
        use_implementation(make_layer(), "loop")


def test_an_implementation_for_a_model_without_the_mixture() -> None:
    with pytest.raises(ValueError, match=r"Linear has no LoRAMoE layer\. Add an adapter with get_peft_model first\."):
        use_implementation(nn.Linear(2, 2), "fused")


@pytest.mark.parametrize("everywhere", [False, True])
def test_what_a_hook_keeps_of_the_base_stays_what_it_was(everywhere: bool) -> None:
    layer = make_layer()
    kept: list[Tensor] = []
    register = register_module_forward_hook if everywhere else layer.base_layer.register_forward_hook
    x = torch.randn(3, D)
    with register(lambda module, args, output: kept.append(output) if module is layer.base_layer else None):
        layer(x)
    assert torch.equal(kept[0], layer.base_layer.forward(x))


@pytest.mark.slow
def test_inductor_compiles_forward_and_backward() -> None:
    layer = make_layer()
    x = torch.randn(2, 5, D)
    layer(x).square().sum().backward()
    eager = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, eager[name], rtol=1e-4, atol=1e-5)
