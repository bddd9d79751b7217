"""What the reader and the converter of original adapters refuse, and that nothing half done is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loramoe import checkpoint
from loramoe.checkpoint import (
    CheckpointError,
    config_from_original,
    config_to_original,
    convert,
    main,
    read_adapter,
    stack_experts,
    unstack_experts,
)
from tests.helpers import edit

GOLDEN = Path(__file__).parent / "golden"
ORIGINAL = GOLDEN / "six_experts_balanced" / "adapter"


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not an adapter: there is no adapter_config.json in it"):
        read_adapter(tmp_path)


def test_a_configuration_that_is_not_json(original: Path) -> None:
    (original / checkpoint.CONFIG).write_text("{'single': quotes}")
    with pytest.raises(CheckpointError, match=r"adapter_config.json is not JSON: Expecting property name"):
        read_adapter(original)


def test_no_weights(original: Path) -> None:
    (original / checkpoint.PICKLED).unlink()
    with pytest.raises(
        CheckpointError, match=r"holds no weights: neither adapter_model.safetensors nor adapter_model.bin"
    ):
        read_adapter(original)


@pytest.mark.parametrize("name", [checkpoint.PICKLED, checkpoint.SAFE])
def test_cut_off_weights(name: str, original: Path, converted: Path) -> None:
    folder = original if name == checkpoint.PICKLED else converted
    whole = (folder / name).read_bytes()
    for size in (len(whole) // 2, 0):
        (folder / name).write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=f"{name} is damaged, or holds more than tensors, and was not loaded"):
            read_adapter(folder)


@pytest.mark.parametrize("lost", ["lora_A2", "lora_A5", "lora_B0", "lora_B5"])
def test_a_missing_expert(lost: str) -> None:
    weights = read_adapter(ORIGINAL)[1]
    del weights[f"base_model.model.model.layers.1.mlp.up_proj.{lost}.weight"]
    left = sorted({0, 1, 2, 3, 4, 5} - {int(lost[-1])})
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.up_proj has .* Copy or download it again") as caught:
        stack_experts(weights)
    assert f"has {lost[:-1]} of experts {left}, but a router for 6 experts: the file is not whole" in str(caught.value)


def test_a_missing_router() -> None:
    weights = read_adapter(ORIGINAL)[1]
    del weights["base_model.model.model.layers.1.mlp.up_proj.lora_route.weight"]
    with pytest.raises(
        CheckpointError, match=r"has lora_A of experts \[0, 1, 2, 3, 4, 5\], but a router for 0 experts"
    ):
        stack_experts(weights)


@pytest.mark.parametrize("lost", ["A", "B", "router"])
def test_a_missing_part_of_ours(lost: str, converted: Path) -> None:
    weights = read_adapter(converted)[1]
    del weights[f"base_model.model.model.layers.1.mlp.up_proj.loramoe_{lost}.weight"]
    with pytest.raises(CheckpointError, match=r"should have a router, A and B of lora_nums=6 experts, but has .*None"):
        unstack_experts(weights, 6)


def test_weights_of_another_number_of_experts(converted: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lora_nums=3 experts, but has \[\[6, 64\], .* do not belong together"):
        unstack_experts(read_adapter(converted)[1], 3)


@pytest.mark.parametrize("change", [lambda A: A.double(), lambda A: A[:1], lambda A: A.flatten()])
def test_experts_that_differ(change: Any) -> None:
    weights = read_adapter(ORIGINAL)[1]
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_A2.weight"
    weights[name] = change(weights[name]).clone()
    with pytest.raises(CheckpointError, match=r"the experts of .*up_proj.lora_A should be matrices of one shape"):
        stack_experts(weights)


def test_a_router_that_is_no_matrix() -> None:
    weights = read_adapter(ORIGINAL)[1]
    weights["base_model.model.model.layers.1.mlp.up_proj.lora_route.weight"] = torch.tensor(1.0)
    with pytest.raises(CheckpointError, match=r"up_proj has lora_A .* but a router for 0 experts"):
        stack_experts(weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 3}, "adapter_config.json says r=3 for .*, but its A has 24 rows for 6 experts, not 6 × 3"),
        ({"r": "4"}, "adapter_config.json: r must be a whole number of at least 1; got r='4'"),
        ({"lora_nums": 5}, "adapter_config.json says lora_nums=5, but the weights of .* hold 6 experts"),
        ({"lora_alpha": None}, "adapter_config.json: lora_alpha must be a finite number"),
    ],
)
def test_a_configuration_of_other_weights(
    changes: dict[str, Any], message: str, original: Path, converted: Path, tmp_path: Path
) -> None:
    for folder, to_original in ((original, False), (converted, True)):
        edit(folder, **changes)
        with pytest.raises(CheckpointError, match=message):
            convert(folder, tmp_path / "new", to_original)
    assert not (tmp_path / "new").exists()


def test_routers_that_share_memory_are_converted(original: Path, tmp_path: Path) -> None:
    weights = read_adapter(original)[1]
    first, second, *_ = [name for name in weights if "gate_proj.lora_route" in name]
    both = torch.cat([weights[first], weights[second]])
    weights[first], weights[second] = both.chunk(2)
    torch.save(weights, original / checkpoint.PICKLED)
    convert(original, tmp_path / "new")
    assert (tmp_path / "new" / checkpoint.SAFE).is_file()


@pytest.mark.parametrize("changes", [{"peft_type": "LORAMOE"}, {"lora_nums": None}])
def test_what_is_no_original(changes: dict[str, Any]) -> None:
    config = read_adapter(ORIGINAL)[0] | changes
    with pytest.raises(CheckpointError, match=r"not an adapter of the original release: .* add --to-original"):
        config_from_original(config)


@pytest.mark.parametrize("foreign", [{"bias": "all"}, {"enable_lora": [True]}, {"merge_weights": True}])
def test_what_an_original_has_and_we_have_not(foreign: dict[str, Any]) -> None:
    ((name, value),) = foreign.items()
    with pytest.raises(CheckpointError, match="the adapter would not be the same") as caught:
        config_from_original(read_adapter(ORIGINAL)[0] | foreign)
    assert f"LoRAMoE has no {name}={value!r}" in str(caught.value)


def test_what_is_none_of_ours() -> None:
    with pytest.raises(CheckpointError, match=r"not a LoRAMoE adapter: its adapter_config.json has peft_type='LORA'"):
        config_to_original(read_adapter(ORIGINAL)[0])


@pytest.mark.parametrize(
    "foreign",
    [
        {"blc_target": "match"},
        {"expert_types": [1, 1, 0, 0, 0, 0]},
        {"use_rslora": True},
        {"rank_pattern": {"up_proj": 2}},
        {"alpha_pattern": {"up_proj": 2}},
        {"exclude_modules": ["up_proj"]},
        {"layers_to_transform": [0]},
    ],
)
def test_what_we_have_and_the_original_has_not(foreign: dict[str, Any], converted: Path) -> None:
    ((name, value),) = foreign.items()
    with pytest.raises(CheckpointError, match="the original release has no") as caught:
        config_to_original(read_adapter(converted)[0] | foreign)
    assert f"{name}={value!r}" in str(caught.value)


def test_a_target_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("used", "file"):
        assert main([str(ORIGINAL), str(tmp_path / name)]) == 1
        assert f"error: {tmp_path / name} exists and is not an empty folder. Choose another" in capsys.readouterr().err
    assert (tmp_path / "used" / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_an_empty_target_is_filled(tmp_path: Path) -> None:
    convert(ORIGINAL, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {checkpoint.CONFIG, checkpoint.SAFE}


@pytest.mark.parametrize("to_original", [False, True])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(
    to_original: bool, error: BaseException, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    monkeypatch.setattr(checkpoint.torch, "save", interrupted)
    with pytest.raises(type(error)):
        convert(converted if to_original else ORIGINAL, tmp_path / "new" / "target", to_original)
    assert list((tmp_path / "new").iterdir()) == []


def test_errors_end_with_a_message_and_code_1(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(original, lora_nums=None)
    assert main([str(original), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: not an adapter of the original release: its adapter_config.json")
    (tmp_path / "file").write_text("")
    assert main([str(ORIGINAL), str(tmp_path / "file" / "out")]) == 1
    assert "error: " in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"original", "file"}


def test_safetensors_are_preferred(original: Path) -> None:
    save_file({"x.lora_route.weight": torch.ones(1)}, original / checkpoint.SAFE)
    assert list(read_adapter(original)[1]) == ["x.lora_route.weight"]
