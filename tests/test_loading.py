"""Base models, tokenizers and adapters, found and loaded; what cannot be is reported before weights are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from loramoe.loading import BaseArguments, adapter_folder, base_name, load, load_base, load_tokenizer
from loramoe.utils import UsageError


@pytest.fixture
def adapters(saved_on_tiny_task: str) -> list[str]:
    """Two adapters on one base model."""
    return [saved_on_tiny_task, shutil.copytree(saved_on_tiny_task, f"{saved_on_tiny_task}_two")]


def rename_base(adapter: str, name: str) -> None:
    config = Path(adapter) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": name}))


def test_the_base_of_the_adapters(tiny_task: Any, adapters: list[str]) -> None:
    assert base_name(None, adapters) == str(tiny_task.base)
    rename_base(adapters[1], "another")
    with pytest.raises(ValueError, match=r"trained on different base models, \['.*', 'another'\]\. Compare"):
        base_name(None, adapters)
    assert base_name("other", adapters) == "other"
    with pytest.raises(ValueError, match=r"there is no model to load. Set --adapter DIR"):
        base_name(None, [])


def test_a_base_model_that_has_moved_can_be_named(tiny_task: Any, adapters: list[str], tmp_path: Path) -> None:
    rename_base(adapters[0], str(tmp_path / "moved"))
    with pytest.raises(UsageError, match=r"could be loaded from .*moved.*set --base_model"):
        load(None, adapters[0])
    assert load(str(tiny_task.base), adapters[0])[0].active_adapter == "default"


def test_the_reason_why_a_base_model_cannot_be_loaded(tiny_task: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_task.base / "config.json").read_bytes())
    with pytest.raises(UsageError, match=r"cannot be loaded; .*no file named"):
        load_base(BaseArguments(str(tmp_path)))


def test_an_adapter_of_the_hub_is_downloaded(adapters: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loramoe.loading.snapshot_download", lambda name, **_: {"me/adapter": adapters[0]}[name])
    assert adapter_folder("me/adapter") == adapters[0]


def test_an_adapter_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **_: Any) -> str:
        raise OSError("no connection")

    monkeypatch.setattr("loramoe.loading.snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=r"no adapter at me/adapter: .* Nor is it on the hub: no connection"):
        adapter_folder("me/adapter")
    with pytest.raises(FileNotFoundError, match=r"adapter_config.json is not there. Correct the path.$"):
        adapter_folder(str(tmp_path))


def test_the_tokenizer_of_the_adapters(tiny_task: Any, adapters: list[str]) -> None:
    own = load_tokenizer(str(tiny_task.base), adapters)
    own.add_tokens(["new"])
    own.save_pretrained(adapters[0])
    assert len(load_tokenizer(str(tiny_task.base), adapters)) == len(own)
    assert len(load_tokenizer(str(tiny_task.base), adapters[1:])) == len(own) - 1
    load_tokenizer(str(tiny_task.base), []).save_pretrained(adapters[1])
    with pytest.raises(ValueError, match=r"bring different tokenizers\. Compare them in runs of their own\."):
        load_tokenizer(str(tiny_task.base), adapters)


def test_dtype_device_and_bits(tiny_task: Any) -> None:
    assert load_base(BaseArguments(str(tiny_task.base), dtype="bfloat16"), device="cpu").dtype == torch.bfloat16
    with pytest.raises(UsageError, match=r"set --device to one that is here, got 'cuda:99': "):
        load_base(BaseArguments(str(tiny_task.base)), device="cuda:99")
    pytest.importorskip("bitsandbytes", reason="4 bits need bitsandbytes, which is not installed")
    loaded = load_base(BaseArguments(str(tiny_task.base), load_in_kbits=4), device="cpu")
    assert type(loaded.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
