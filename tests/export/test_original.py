"""Adapters of the original code: read, converted and written back bit for bit; or an error, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from loramoe import last_balance
from loramoe.export import original as module
from loramoe.export.original import (
    CONFIG,
    PICKLED,
    SAFE,
    CheckpointError,
    config_from_original,
    config_to_original,
    convert,
    main,
    read_adapter,
    split_experts,
)
from tests.conftest import ORIGINAL
from tests.helpers import edit

BASE = ORIGINAL.parents[1] / "base"
IDS = torch.arange(3, 13).reshape(2, 5)


def base() -> Any:
    """The golden base model, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(BASE).eval()


def by_transformers(folder: Path, *name: str) -> Any:
    model = base()
    model.load_adapter(str(folder), *name)
    return model


def equal_bit_for_bit(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names, with the same numbers of the same dtype."""
    return one.keys() == other.keys() and all(
        one[name].dtype is other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize(
    "load",
    [
        by_transformers,
        lambda folder: by_transformers(folder, "mine"),
        lambda folder: AutoModelForCausalLM.from_pretrained(folder).eval(),
        lambda folder: AutoPeftModelForCausalLM.from_pretrained(folder).eval(),
    ],
)
def test_every_reader_reads_an_original(load: Callable[[Path], Any], original: Path, converted: Path) -> None:
    edit(original, base_model_name_or_path=str(BASE))
    expected = PeftModel.from_pretrained(base(), converted)(IDS).logits
    assert not torch.allclose(expected, base()(IDS).logits, atol=1e-2)
    model = load(original)
    assert torch.equal(model(IDS, task_types=torch.tensor([0, 1])).logits, expected)
    assert len(last_balance(model).layers) == 9  # the hooks came along


def test_an_original_is_loaded_and_saved_bit_for_bit(tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(base(), ORIGINAL, is_trainable=True)
    model.save_pretrained(tmp_path / "saved")
    convert(tmp_path / "saved", tmp_path / "back", to_original=True)
    assert equal_bit_for_bit(read_adapter(tmp_path / "back")[1], read_adapter(ORIGINAL)[1])


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def test_code_in_a_pickle_does_not_run(original: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"x.lora_route.weight": Hostile(mark)}, original / PICKLED)
    for load in (read_adapter, lambda folder: PeftModel.from_pretrained(base(), folder), by_transformers):
        with pytest.raises(Exception, match=r"[Ww]eights.only"):
            load(original)
    assert not mark.exists()


@pytest.mark.parametrize("lost", [CONFIG, PICKLED])
@pytest.mark.parametrize("content", [None, b"{'cut off"])
def test_a_file_that_is_missing_or_damaged(lost: str, content: bytes | None, original: Path) -> None:
    (original / lost).unlink()
    if content is not None:
        (original / lost).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{original} holds no adapter that can be read: .*Check") as caught:
        read_adapter(original)
    assert "\n" not in str(caught.value)


def test_original_to_ours_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, back = tmp_path / "ours", tmp_path / "deep" / "back"
    assert main([str(ORIGINAL), str(ours)]) == 0
    assert main([str(ours), str(back), "--to-original"]) == 0
    assert capsys.readouterr().out == f"wrote {ours}\nwrote {back}\n"
    assert equal_bit_for_bit(read_adapter(back)[1], read_adapter(ORIGINAL)[1])
    assert (back / CONFIG).read_text() == (ORIGINAL / CONFIG).read_text()
    assert {file.name for file in ours.iterdir()} == {CONFIG, SAFE}
    assert {file.name for file in back.iterdir()} == {CONFIG, PICKLED}
    assert {folder.name for folder in tmp_path.iterdir()} == {"ours", "deep"}


def test_ours_to_original_and_back(adapted: Any, tiny_llama: Any, tmp_path: Path, ids: Tensor) -> None:
    model = adapted(modules_to_save=["lm_head"], blc_target="paper", blc_importance="sum")
    model.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "original", to_original=True)
    convert(tmp_path / "original", tmp_path / "again")
    assert equal_bit_for_bit(load_file(tmp_path / "again" / SAFE), load_file(tmp_path / "ours" / SAFE))
    for folder in ("original", "again"):
        loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / folder)
        assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("lost", ["A", "B", "router"])
def test_a_layer_of_ours_that_lacks_a_part(lost: str, converted: Path) -> None:
    weights = read_adapter(converted)[1]
    del weights[f"base_model.model.model.layers.1.mlp.up_proj.loramoe_experts.{lost}"]
    with pytest.raises(CheckpointError, match=r"up_proj must have a router, A and B of lora_nums=6"):
        split_experts(weights, 6)


@pytest.mark.parametrize(("changes", "message"), [({"lora_nums": 5}, "lora_nums=5"), ({"r": "4"}, "got '4'")])
@pytest.mark.parametrize("to_original", [False, True])
def test_a_configuration_of_other_weights(
    to_original: bool, changes: dict[str, Any], message: str, original: Path, converted: Path, tmp_path: Path
) -> None:
    folder = converted if to_original else original
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        convert(folder, tmp_path / "new", to_original)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORAMOE"}, "peft_type='LORAMOE'.* add --to-original"),
        ({"lora_nums": None}, "lora_nums=None"),
        ({"merge_weights": True}, "merge_weights=True"),
    ],
)
def test_what_is_no_original(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_from_original(read_adapter(ORIGINAL)[0] | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type='LORA'"),
        ({"blc_target": "match"}, "blc_target='match'"),
        ({"blc_importance": "mean"}, "blc_importance='mean'"),
        ({"expert_types": [1, 1, 0, 0, 0, 0]}, r"expert_types=\[1, 1, 0, 0, 0, 0\]"),
        ({"use_rslora": True, "rank_pattern": {"up_proj": 2}}, r"rank_pattern={'up_proj': 2}, use_rslora=True"),
    ],
)
def test_what_the_original_code_does_not_know(changes: dict[str, Any], message: str, converted: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_to_original(read_adapter(converted)[0] | changes)


def test_a_target_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "used").mkdir()
    for file in (tmp_path / "used" / "notes.txt", tmp_path / "file"):
        file.write_text("mine")
    for name in ("used", "file"):
        assert main([str(ORIGINAL), str(tmp_path / name)]) == 1
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / name} exists and is not an empty folder")
    assert (tmp_path / "used" / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_empty_target(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    monkeypatch.setattr(module, "save_file", Mock(side_effect=error))
    with pytest.raises(type(error)):
        convert(ORIGINAL, tmp_path / "new")
    monkeypatch.undo()
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]
    convert(ORIGINAL, tmp_path / "new")
    assert {file.name for file in (tmp_path / "new").iterdir()} == {CONFIG, SAFE}
