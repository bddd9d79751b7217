"""What PEFT promises of every method on every model and in every dtype, as its own suite checks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import (
    PeftModel,
    cast_mixed_precision_params,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)

from tests.conformance.small import CASES, Case, Mlp, config, each_model, later_peft, rows, seeded
from tests.helpers import trainable

pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file", "ignore:Adapter .* was active which")


def dtypes(model: Any, adapter: str = "default") -> set[torch.dtype]:
    return {p.dtype for name, p in model.named_parameters() if "loramoe_" in name and f".{adapter}." in name}


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@each_model
def test_training_changes_the_adapter_alone(case: Case) -> None:
    model = case.adapted().train()
    trained, before = trainable(model), state_of(model)
    assert trained == {name for name in before if "loramoe_" in name or ".modules_to_save." in name}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        case.output(model).pow(2).mean().backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
        optimizer.step()
    assert changed(model, before) == trained


@each_model
@pytest.mark.parametrize(
    ("name", "weights", "is_trainable"),
    [("default", "adapter_model.safetensors", True), ("other", "adapter_model.bin", False)],
)
def test_save_and_load(case: Case, name: str, weights: str, is_trainable: bool, tmp_path: Path) -> None:
    model = case.adapted(seed=1, adapter_name=name)
    model.save_pretrained(tmp_path, safe_serialization=is_trainable)
    folder = tmp_path if name == "default" else tmp_path / name
    files = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {weights, "adapter_config.json", "README.md"}
    options = {"adapter_name": name, "is_trainable": is_trainable, "low_cpu_mem_usage": is_trainable}
    loaded = PeftModel.from_pretrained(case.base(), folder, **options)
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cpu"}
    assert trainable(loaded) == (trainable(model) if is_trainable else set())
    assert loaded.training == is_trainable
    assert torch.equal(case.output(loaded.eval()), case.output(model))


@later_peft
@each_model
@torch.no_grad()
def test_disable_and_unload(case: Case) -> None:
    base = case.base()
    wanted, names, model = case.output(base), list(base.state_dict()), case.adapted()
    adapted, trained = case.output(model), trainable(model)
    assert not torch.allclose(adapted, wanted, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(case.output(model), wanted)
        assert not trainable(model)
    assert torch.equal(case.output(model), adapted)
    assert trainable(model) == trained
    unloaded = model.unload()
    assert type(unloaded) is type(base)
    assert list(unloaded.state_dict()) == names
    assert torch.equal(case.output(unloaded), wanted)


@later_peft
@each_model
def test_several_adapters(case: Case, tmp_path: Path) -> None:
    model = case.adapted()
    wanted, trained = case.output(model), trainable(model)
    case.adapted(seed=1).save_pretrained(tmp_path)
    result = model.load_adapter(tmp_path, "loaded", is_trainable=True)
    assert result.missing_keys == result.unexpected_keys == []
    model.add_adapter("added", case.config())
    model.eval()
    assert torch.equal(case.output(model), wanted)
    for name in ("loaded", "added"):
        model.set_adapter(name)
        assert {path.replace(f".{name}", ".default") for path in trainable(model)} == trained
        assert not torch.allclose(case.output(model), wanted, atol=1e-3)
    model.delete_adapter("added")
    model.delete_adapter("loaded")
    assert model.active_adapters == ["default"]
    assert trainable(model) == trained
    assert torch.equal(case.output(model), wanted)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_inject_by_state_dict(low_cpu_mem_usage: bool, recwarn: pytest.WarningsRecorder) -> None:
    by_config = get_peft_model_state_dict(inject_adapter_in_model(config("lin0", "lin1"), Mlp()))
    options = {"state_dict": by_config, "low_cpu_mem_usage": low_cpu_mem_usage}
    by_names = get_peft_model_state_dict(inject_adapter_in_model(config("lin0", "lin1"), Mlp(), **options))
    assert not [warning for warning in recwarn if "inconsistency" in str(warning.message)]
    assert {n: t.shape for n, t in by_names.items()} == {n: t.shape for n, t in by_config.items()}
    assert {tensor.device.type for tensor in by_names.values()} == {"meta" if low_cpu_mem_usage else "cpu"}


@each_model
@pytest.mark.parametrize(("dtype", "autocast_adapter_dtype"), [(torch.bfloat16, True), (torch.float16, False)])
def test_half_precision(case: Case, dtype: torch.dtype, autocast_adapter_dtype: bool) -> None:
    model = get_peft_model(case.base().to(dtype), case.config(), autocast_adapter_dtype=autocast_adapter_dtype)
    assert dtypes(model) == {torch.float32 if autocast_adapter_dtype else dtype}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {dtype}
    inputs = {name: tensor.to(dtype) if name == "x" else tensor for name, tensor in case.inputs.items()}
    out = case._replace(inputs=inputs).output(model)
    assert out.dtype is dtype
    out.float().pow(2).mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@later_peft
@pytest.mark.parametrize("upcast", [True, False])
def test_added_and_loaded_adapters_have_one_dtype(upcast: bool, tmp_path: Path) -> None:
    model = get_peft_model(seeded(Mlp).bfloat16(), config(), autocast_adapter_dtype=upcast)
    model.add_adapter("added", config(), autocast_adapter_dtype=upcast)
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "loaded", autocast_adapter_dtype=upcast)
    again = PeftModel.from_pretrained(seeded(Mlp).bfloat16(), tmp_path, autocast_adapter_dtype=upcast)
    found = [dtypes(again), *(dtypes(model, name) for name in ("default", "added", "loaded"))]
    assert found == [{torch.float32 if upcast else torch.bfloat16}] * 4


@later_peft
def test_dtypes_of_the_base_model() -> None:
    assert dtypes(get_peft_model(seeded(Mlp).to(torch.float8_e4m3fn), config())) == {torch.float32}
    model = get_peft_model(seeded(Mlp).double(), config())
    assert dtypes(model) == {torch.float64}
    assert model(rows().double()).dtype is torch.float64
    assert model.to(torch.bfloat16)(rows().bfloat16()).isfinite().all()
    cast_mixed_precision_params(model, torch.float16)
    assert dtypes(model) == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.float16}


@torch.no_grad()
def test_a_base_model_on_meta_or_offloaded() -> None:
    with torch.device("meta"):
        on_meta = Mlp()
    assert {p.device.type for p in get_peft_model(on_meta, config()).parameters()} == {"meta"}
    model = CASES["two layers"].adapted()
    wanted = model(rows())
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert torch.equal(model(rows()), wanted)
    assert {p.device.type for p in model.parameters()} == {"meta"}
