"""Whatever the converter is given: the target whole, or one line of error, code 1, and nothing left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from loramoe.adapter_files import CONFIG, PICKLED, SAFE, read_adapter
from loramoe.checkpoint import main
from tests.conftest import ORIGINAL
from tests.fuzz.strategies import VALUES, as_json, broken, drawn, spoilt, times
from tests.fuzz.test_fuzz_adapter import NAMES, weights

pytestmark = pytest.mark.filterwarnings("ignore")


def run(source: Path, to_original: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Converts into a folder of its own, and looks at what is there afterwards."""
    place = source.parent / "place"
    place.mkdir()
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    code = main([str(source), str(place / "new"), *(["--to-original"] if to_original else [])])
    printed = capsys.readouterr()
    if code == 0:
        assert [entry.name for entry in place.iterdir()] == ["new"]
        written = PICKLED if to_original else SAFE
        assert {file.name for file in (place / "new").iterdir()} == {CONFIG, written}
        assert read_adapter(place / "new")[1]
    else:
        assert code == 1
        assert list(place.iterdir()) == []
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        assert len(printed.err.strip()) > len("error: ")
        assert printed.out == ""
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before
    shutil.rmtree(place)


@times(fast=100, slow=1500)
@pytest.mark.parametrize("to_original", [False, True])
def test_folders(
    to_original: bool, count: int, original: Path, converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = converted if to_original else original
    name = SAFE if to_original else PICKLED
    config, whole = json.loads((source / CONFIG).read_text()), (source / name).read_bytes()
    valid = load_file(source / SAFE) if to_original else torch.load(source / PICKLED, weights_only=True)

    @drawn(count)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        (source / CONFIG).write_bytes(data.draw(st.just(as_json(config)) | spoilt(config, NAMES).map(as_json)))
        kind = data.draw(st.sampled_from(["whole", "config", "bytes", "tensors"]))
        (source / name).write_bytes(data.draw(broken(whole)) if kind == "bytes" else whole)
        if kind == "config":
            (source / CONFIG).write_bytes(data.draw(broken(as_json(config))))
        elif kind == "tensors" and to_original:
            save_file(data.draw(weights(valid)), source / SAFE)
        elif kind == "tensors":
            torch.save(data.draw(weights(valid)), source / PICKLED)
        run(source, to_original, capsys)

    holds()


def shared() -> Any:
    """Two routers in one memory, which safetensors does not write."""
    tensors = torch.load(ORIGINAL / PICKLED, weights_only=True)
    routers = [name for name in tensors if "route" in name]
    both = torch.cat([tensors[name] for name in routers[:2] if tensors[name].shape == tensors[routers[0]].shape])
    tensors[routers[0]] = both[: len(tensors[routers[0]])]
    return tensors


@times(fast=60, slow=500)
def test_pickles_of_anything(count: int, original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `weights_only` lets pass need not be tensors by name."""
    odd = [shared(), torch.ones(2), {"x.lora_route.weight": torch.ones(2, 2).to_sparse()}, {1: torch.ones(1)}, {}]
    odd += [{"x.lora_route.weight": torch.empty(2, 2, device="meta")}, {"x.lora_route.weight": torch.nn.Linear(1, 1)}]
    odd += [{"x.lora_route.weight": torch.nn.Parameter(torch.ones(2, 2))}]
    pickled = [{"x" * 300 + ".lora_route.weight": torch.ones(0, 0)}, {"a": {"b": torch.ones(1)}}]

    @drawn(count)
    @given(st.sampled_from([*odd, *pickled]) | VALUES)
    def holds(value: Any) -> None:
        torch.save(value, original / PICKLED)
        run(original, False, capsys)

    holds()


@pytest.mark.parametrize("source", ["", "/", "no/such", "x" * 300])
def test_what_is_no_folder(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([source, str(tmp_path / "new")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []
