"""Whatever an adapter's folder holds, it loads, or is refused with a message; and code in a pickle never runs."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraMoeConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from loramoe.adapter_files import CONFIG, PICKLED, SAFE, CheckpointError
from loramoe.compat_files import is_loramoe_folder
from tests.conftest import ORIGINAL
from tests.fuzz.strategies import as_json, broken, drawn, spoilt, times, told

FIELDS = sorted(field.name for field in dataclasses.fields(LoraMoeConfig))
NAMES = st.sampled_from([*FIELDS, "self", "cls", "runtime_config", "fan_in_fan_out", "no_such_field"])

pytestmark = pytest.mark.filterwarnings("ignore")


def base(like: str = "ours") -> Any:
    """A model that the adapter fits: the tiny one, or that of the original adapter."""
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    if like == "original":
        return LlamaForCausalLM(LlamaConfig.from_pretrained(ORIGINAL.parent.parent / "base"))
    return LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2, num_key_value_heads=2))


def by_peft(folder: Path, like: str) -> None:
    PeftModel.from_pretrained(base(like), folder)


def by_transformers(folder: Path, like: str) -> None:
    base(like).load_adapter(str(folder))


def load(door: Callable[[Path, str], None], folder: Path, like: str = "ours") -> None:
    if not may_be_ours(folder):
        return  # another kind of adapter, which is PEFT's to judge
    try:
        door(folder, like)
    except ValueError as error:
        told(error)
    except TypeError as error:  # PEFT's own, of all its methods: modules_to_save names a list of modules
        if "modules_to_save cannot be applied to modules of type" not in str(error):
            raise


def may_be_ours(folder: Path) -> bool:
    try:
        return is_loramoe_folder(folder)
    except CheckpointError:
        return True


DOORS = st.sampled_from([by_peft, by_transformers])


@st.composite
def weights(draw: Any, valid: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with some dropped, renamed, or of another shape, dtype or content."""
    changed = dict(valid)
    for name in draw(st.lists(st.sampled_from(sorted(valid)), min_size=1, max_size=3, unique=True)):
        tensor = changed.pop(name)
        kind = draw(st.sampled_from(["drop", "rename", "cut", "flat", "dtype", "nan", "empty", "scalar"]))
        if kind != "drop":
            rename = draw(st.sampled_from([name.replace("A", "B"), name[5:], name + "x", "x", name.upper()]))
            changed[rename if kind == "rename" else name] = altered(tensor, kind)
    return changed


def altered(tensor: Tensor, kind: str) -> Tensor:
    made = {
        "cut": lambda: tensor[1:],
        "flat": tensor.flatten,
        "dtype": lambda: tensor.to(torch.int8),
        "nan": lambda: torch.full_like(tensor, torch.nan),
        "empty": lambda: tensor[:0],
        "scalar": lambda: torch.tensor(1.0),
    }
    return made.get(kind, lambda: tensor)().clone().contiguous()


@times(fast=100, slow=1000)
def test_configurations(count: int, saved: Path) -> None:
    config = json.loads((saved / CONFIG).read_text())

    @drawn(count)
    @given(st.data(), DOORS)
    def holds(data: st.DataObject, door: Callable[[Path, str], None]) -> None:
        (saved / CONFIG).write_bytes(data.draw(spoilt(config, NAMES).map(as_json).flatmap(broken)))
        load(door, saved)

    holds()


@times(fast=60, slow=1000)
def test_weights(count: int, saved: Path) -> None:
    valid = load_file(saved / SAFE)
    whole = (saved / SAFE).read_bytes()

    @drawn(count)
    @given(st.data(), DOORS)
    def holds(data: st.DataObject, door: Callable[[Path, str], None]) -> None:
        if data.draw(st.booleans()):
            (saved / SAFE).write_bytes(data.draw(broken(whole)))
        else:
            save_file(data.draw(weights(valid)), saved / SAFE, metadata={"format": "pt"})
        load(door, saved)

    holds()


@times(fast=60, slow=1000)
def test_originals(count: int, original: Path) -> None:
    config, whole = json.loads((original / CONFIG).read_text()), (original / PICKLED).read_bytes()
    valid = torch.load(original / PICKLED, weights_only=True)

    @drawn(count)
    @given(st.data(), DOORS)
    def holds(data: st.DataObject, door: Callable[[Path, str], None]) -> None:
        (original / CONFIG).write_bytes(as_json(data.draw(st.just(config) | spoilt(config, NAMES))))
        if data.draw(st.booleans()):
            (original / PICKLED).write_bytes(data.draw(broken(whole)))
        else:
            torch.save(data.draw(weights(valid)), original / PICKLED)
        load(door, original, "original")

    holds()


class Hostile:
    """Unpickled, it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("door", [by_peft, by_transformers])
@pytest.mark.parametrize("write", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("kind", ["ours", "original"])
def test_code_in_a_pickle_does_not_run(
    kind: str, write: Any, door: Callable[[Path, str], None], saved: Path, original: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved if kind == "ours" else original, tmp_path / "hostile"))
    (folder / SAFE).unlink(missing_ok=True)
    mark = tmp_path / "it_ran"
    write({"a": Hostile(mark)}, folder / PICKLED)
    with pytest.raises(CheckpointError, match=r"adapter_model.bin is damaged, or holds more than tensors, and was not"):
        door(folder, kind)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))
    assert mark.exists(), "the pickle would have done nothing anyway"
