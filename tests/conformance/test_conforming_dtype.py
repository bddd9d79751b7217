"""What PEFT promises of the dtypes of an adapter, and of its devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel, cast_mixed_precision_params, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import nn

from tests.conformance.small import Mlp, config, later_peft, rows, seeded
from tests.helpers import trainable

HALF = (torch.bfloat16, torch.float16)


def dtypes(model: Any, adapter: str) -> set[torch.dtype]:
    return {p.dtype for name, p in model.named_parameters() if "loramoe_" in name and f".{adapter}." in name}


def base(dtype: torch.dtype = torch.float32) -> nn.Module:
    return seeded(Mlp).to(dtype)


@later_peft
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("upcast", [True, False])
def test_every_way_into_the_model_keeps_to_one_dtype(dtype: torch.dtype, upcast: bool, tmp_path: Path) -> None:
    wanted = {torch.float32 if upcast else dtype}
    model = get_peft_model(base(dtype), config(), autocast_adapter_dtype=upcast)
    model.add_adapter("added", config(), autocast_adapter_dtype=upcast)
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "loaded", autocast_adapter_dtype=upcast)
    assert [dtypes(model, name) for name in ("default", "added", "loaded")] == [wanted] * 3
    again = PeftModel.from_pretrained(base(dtype), tmp_path, autocast_adapter_dtype=upcast)
    assert dtypes(again, "default") == wanted
    assert {p.dtype for name, p in model.named_parameters() if "base_layer" in name} == {dtype}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("upcast", [True, False])
def test_what_comes_out_has_the_dtype_of_the_base(dtype: torch.dtype, upcast: bool) -> None:
    model = get_peft_model(base(dtype), config("lin0", "lin1"), autocast_adapter_dtype=upcast)
    out = model(rows().to(dtype))
    assert out.dtype is dtype
    out.sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == dtypes(model, "default")


@later_peft
def test_smaller_floats_are_raised_too() -> None:
    model = get_peft_model(base(torch.float8_e4m3fn), config())
    assert dtypes(model, "default") == {torch.float32}


def test_double_precision_stays_double() -> None:
    model = get_peft_model(base(torch.float64), config())
    assert dtypes(model, "default") == {torch.float64}
    assert model(rows().double()).dtype is torch.float64


@pytest.mark.parametrize("dtype", HALF)
def test_mixed_precision_keeps_what_is_trained_in_float32(dtype: torch.dtype) -> None:
    model = get_peft_model(base(), config("lin0", modules_to_save=["lin1"]))
    cast_mixed_precision_params(model, dtype)
    found = {name: p.dtype for name, p in model.named_parameters()}
    assert {found[name] for name in trainable(model)} == {torch.float32}
    assert {found[name] for name in found.keys() - trainable(model)} == {dtype}


def test_an_input_in_another_dtype_than_the_adapter() -> None:
    model = get_peft_model(base(torch.bfloat16), config())
    with disable_input_dtype_casting(model):
        out = model(rows().bfloat16())
    assert torch.equal(out, model(rows().bfloat16()))


def test_the_whole_model_is_moved_at_once() -> None:
    model = get_peft_model(base(), config()).to(torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(rows().bfloat16()).isfinite().all()


def test_an_adapter_goes_where_its_linear_is() -> None:
    with torch.device("meta"):
        model = Mlp()
    model = get_peft_model(model, config())
    assert {p.device.type for p in model.parameters()} == {"meta"}


@torch.no_grad()
def test_weights_that_accelerate_has_offloaded_come_back_for_the_forward() -> None:
    model = get_peft_model(base(), config("lin0", "lin1")).eval()
    wanted = model(rows())
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert torch.equal(model(rows()), wanted)
    assert {p.device.type for p in model.parameters()} == {"meta"}
