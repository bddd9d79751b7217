"""Files of adapters that are damaged, or no adapters, are named with what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loramoe.adapter_files import (
    CONFIG,
    PICKLED,
    SAFE,
    CheckpointError,
    check_tensors,
    damaged,
    read_adapter,
    read_config,
    weights_file,
)

ROUTER = "x.lora_route.weight"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "adapter_config.json is not JSON: Expecting value"),
        (b"\xff{}", "adapter_config.json is not JSON: 'utf-8' codec"),
        (b"[" * 100_000, "adapter_config.json is not JSON: nested too deeply"),
        (b'{"r": ' + b"9" * 5000 + b"}", "adapter_config.json is not JSON: Exceeds the limit"),
        (b"null", "should hold one JSON object, but holds a NoneType"),
        (b'{"peft_type": ["LORA"]}', r"peft_type should be text such as 'LORAMOE'; got peft_type=\['LORA'\]"),
    ],
)
def test_a_configuration_that_is_none(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_config(tmp_path / CONFIG)


def test_a_configuration_with_the_mark_of_some_editors(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_bytes(b'\xef\xbb\xbf{"r": 4}')
    assert read_config(tmp_path / CONFIG) == {"r": 4}


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(CheckpointError, match=r"adapter_config.json cannot be read \(Is a directory\)"):
        read_config(tmp_path / CONFIG)


def test_safetensors_come_first(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        weights_file(tmp_path)
    for name in (PICKLED, SAFE):
        (tmp_path / name).touch()
        assert weights_file(tmp_path).name == name


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([torch.ones(1)], "should hold tensors by name, but holds a list"),
        ({1: torch.ones(1)}, "holds 1, a Tensor: it is no file of weights"),
        ({"a": {"b": torch.ones(1)}}, "holds 'a', a dict: it is no file of weights"),
        ({ROUTER: torch.ones(2, 2).to_sparse()}, f"{ROUTER} is a sparse, quantised or empty tensor"),
        ({ROUTER: torch.empty(2, 2, device="meta")}, f"{ROUTER} is a sparse, quantised or empty tensor"),
    ],
)
def test_what_is_no_weights(weights: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_tensors(tmp_path, weights)
    (tmp_path / CONFIG).write_text("{}")
    torch.save(weights, tmp_path / PICKLED)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(tmp_path)


def test_advice_to_load_it_all_the_same_is_left_out() -> None:
    advice = (
        "Weights only load failed. Re-run with `weights_only=False`.\n\nWeightsUnpickler error: Unsupported global: x"
    )
    told = str(damaged(Path("a.bin"), RuntimeError(advice)))
    assert told == (
        "a.bin is damaged, or holds more than tensors, and was not loaded: Unsupported global: x. Copy or download it "
        "again."
    )
    assert "loaded: EOFError. Copy" in str(damaged(Path("a.bin"), EOFError()))
