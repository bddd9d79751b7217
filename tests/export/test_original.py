"""Adapters of the original code: read, converted and written back bit for bit; or an error, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from loramoe import last_balance
from loramoe.export import original as module
from loramoe.export.original import CONFIG, PICKLED, SAFE, CheckpointError, convert, main, read_adapter
from tests.conftest import ORIGINAL
from tests.helpers import edit

BASE = ORIGINAL.parents[1] / "base"
IDS = torch.arange(3, 13).reshape(2, 5)


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(BASE).eval()


def by_transformers(folder: Path) -> Any:
    model = base()
    model.load_adapter(str(folder))
    return model


def equal_bit_for_bit(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names, with the same numbers of the same dtype."""
    return one.keys() == other.keys() and all(
        one[name].dtype is other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def config_of(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / CONFIG).read_text())
    return {**config, "target_modules": sorted(config["target_modules"])}


@pytest.mark.parametrize(
    "load",
    [
        by_transformers,
        lambda folder: AutoModelForCausalLM.from_pretrained(folder).eval(),
        lambda folder: AutoPeftModelForCausalLM.from_pretrained(folder).eval(),
    ],
)
def test_an_original_loads_in_every_way(load: Callable[[Path], Any], original: Path, converted: Path) -> None:
    edit(original, base_model_name_or_path=str(BASE))
    expected = PeftModel.from_pretrained(base(), converted)(IDS).logits
    assert not torch.allclose(expected, base()(IDS).logits, atol=1e-2)
    model = load(original)
    assert torch.equal(model(IDS, task_types=torch.tensor([0, 1])).logits, expected)
    assert len(last_balance(model).layers) == 9  # the hooks are attached


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


@pytest.mark.parametrize("file", [CONFIG, PICKLED])
@pytest.mark.parametrize("content", [None, b"{'cut off"])
def test_a_file_that_is_missing_or_damaged(file: str, content: bytes | None, original: Path) -> None:
    (original / file).unlink()
    if content is not None:
        (original / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=str(original)) as caught:
        read_adapter(original)
    assert "\n" not in str(caught.value)


def test_there_and_back_with_tokenizer_and_prompt_format(original: Path, tmp_path: Path) -> None:
    beside = {name: f"of {name}" for name in ("tokenizer.json", "chat_template.jinja", "loramoe_prompt.json")}
    for name, text in {**beside, "optimizer.pt": "large"}.items():
        (original / name).write_text(text)
    ours, back = tmp_path / "ours", tmp_path / "deep" / "back"
    assert main([str(original), str(ours)]) == 0
    assert main([str(ours), str(back), "--to-original"]) == 0
    assert equal_bit_for_bit(read_adapter(back)[1], read_adapter(ORIGINAL)[1])
    assert config_of(back) == config_of(ORIGINAL)
    for folder, weights in ((ours, SAFE), (back, PICKLED)):
        assert {file.name for file in folder.iterdir()} == {CONFIG, weights, "export_report.json", *beside}
        assert {name: (folder / name).read_text() for name in beside} == beside


def test_ours_to_original_and_back(adapted: Any, tiny_llama: Any, tmp_path: Path, ids: Tensor) -> None:
    model = adapted(modules_to_save=["lm_head"], blc_target="paper", blc_importance="sum")
    model.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "original", to_original=True)
    convert(tmp_path / "original", tmp_path / "again")
    assert equal_bit_for_bit(load_file(tmp_path / "again" / SAFE), load_file(tmp_path / "ours" / SAFE))
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "original")
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("to_original", "changes", "named"),
    [
        (False, {"lora_nums": None}, "lora_nums"),
        (False, {"lora_nums": 5}, "lora_nums=5"),
        (False, {"r": "4"}, "'4'"),
        (False, {"merge_weights": True}, "merge_weights=True"),
        (True, {"blc_target": "match", "blc_importance": "mean"}, "blc_target='match', blc_importance='mean'"),
        (True, {"expert_types": [1, 1, 0, 0, 0, 0]}, "expert_types"),
        (True, {"use_rslora": True, "rank_pattern": {"up_proj": 2}}, "use_rslora=True, rank_pattern={'up_proj': 2}"),
    ],
)
def test_what_cannot_be_converted(
    to_original: bool, changes: dict[str, Any], named: str, original: Path, converted: Path, tmp_path: Path
) -> None:
    folder = converted if to_original else original
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=named):
        convert(folder, tmp_path / "new", to_original)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("to_original", [False, True])
def test_an_adapter_that_has_the_format_already(
    to_original: bool, original: Path, converted: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="--to-original"):
        convert(original if to_original else converted, tmp_path / "new", to_original)


def test_a_failure_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(ORIGINAL, tmp_path / "ours")
    before = {file.name: file.read_bytes() for file in (tmp_path / "ours").iterdir()}

    def fail(*_: Any, **options: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(SystemExit) as exit:
        main([str(ORIGINAL), str(tmp_path / "ours"), "--overwrite"])
    assert exit.value.code == 1
    assert capsys.readouterr().err == "loramoe convert: disk full\n"
    assert {file.name: file.read_bytes() for file in (tmp_path / "ours").iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["ours"]
