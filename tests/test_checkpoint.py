"""Adapters of the original release: read, converted and written back without changing a bit, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from loramoe import checkpoint
from loramoe.checkpoint import (
    CheckpointError,
    convert,
    is_original,
    main,
    read_adapter,
    stack_experts,
    unstack_experts,
)
from tests.helpers import edit

GOLDEN = Path(__file__).parent / "golden"
ORIGINAL = GOLDEN / "six_experts_balanced" / "adapter"


def base() -> Any:
    """The golden base model, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "base").eval()


def equal_bit_for_bit(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names in the same order, with the same numbers of the same dtype."""
    return list(one) == list(other) and all(
        one[name].dtype is other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def test_every_reader_reads_an_original(converted: Path) -> None:
    ids = torch.arange(3, 13).reshape(2, 5)
    wanted = PeftModel.from_pretrained(base(), ORIGINAL)(ids).logits
    assert not torch.allclose(wanted, base()(ids).logits, atol=1e-2)
    assert torch.equal(PeftModel.from_pretrained(base(), converted)(ids).logits, wanted)
    loaded = base()
    loaded.load_adapter(str(ORIGINAL))
    assert torch.equal(loaded(ids).logits, wanted)
    named = base()
    named.load_adapter(str(ORIGINAL), "mine")
    assert torch.equal(named(ids).logits, wanted)


def test_from_pretrained_of_an_original_folder(original: Path) -> None:
    edit(original, base_model_name_or_path=str(GOLDEN / "base"))
    ids = torch.arange(3, 13).reshape(2, 5)
    wanted = PeftModel.from_pretrained(base(), ORIGINAL)(ids).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(original).eval()(ids).logits, wanted)


def test_an_original_that_was_trained_on_is_saved_as_ours(tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(base(), ORIGINAL, is_trainable=True)
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / checkpoint.CONFIG).read_text())["peft_type"] == "LORAMOE"
    convert(tmp_path / "saved", tmp_path / "back", to_original=True)
    assert equal_bit_for_bit(read_adapter(tmp_path / "back")[1], read_adapter(ORIGINAL)[1])


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def test_a_hostile_pickle_is_refused(original: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"x": Hostile(mark)}, original / checkpoint.PICKLED)
    with pytest.raises(
        CheckpointError, match=r"adapter_model.bin is damaged, or holds more than tensors, and was not load"
    ):
        read_adapter(original)
    with pytest.raises(CheckpointError, match=r"adapter_model.bin is damaged, .* and was not loaded"):
        PeftModel.from_pretrained(base(), original)
    with pytest.raises(CheckpointError, match=r"adapter_model.bin is damaged, .* and was not loaded"):
        base().load_adapter(str(original))
    assert not mark.exists()


# --- converting -------------------------------------------------------------------------------------------------------


def test_there_and_back_again_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, back = tmp_path / "ours", tmp_path / "deep" / "back"
    assert main([str(ORIGINAL), str(ours)]) == 0
    assert main([str(ours), str(back), "--to-original"]) == 0
    assert capsys.readouterr().out == f"wrote {ours}\nwrote {back}\n"
    assert equal_bit_for_bit(read_adapter(back)[1], read_adapter(ORIGINAL)[1])
    assert (back / checkpoint.CONFIG).read_text() == (ORIGINAL / checkpoint.CONFIG).read_text()
    assert {file.name for file in ours.iterdir()} == {checkpoint.CONFIG, checkpoint.SAFE}
    assert {file.name for file in back.iterdir()} == {checkpoint.CONFIG, checkpoint.PICKLED}
    assert {folder.name for folder in tmp_path.iterdir()} == {"ours", "deep"}


def test_an_adapter_of_ours_there_and_back(adapted: Any, tiny_llama: Any, tmp_path: Path, ids: Tensor) -> None:
    model = adapted(modules_to_save=["lm_head"])
    model.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "original", to_original=True)
    convert(tmp_path / "original", tmp_path / "again")
    weights = load_file(tmp_path / "ours" / checkpoint.SAFE)
    assert equal_bit_for_bit(load_file(tmp_path / "again" / checkpoint.SAFE), weights)
    for folder in ("original", "again"):
        loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / folder)
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_original_order_with_many_layers() -> None:
    linears = [f"layers.{i}.{name}" for i in (0, 2, 10) for name in ("gate_proj", "down_proj", "up_proj", "q_proj")]
    stacked = {
        f"{linear}.loramoe_{which}.weight": torch.zeros(1, 1)
        for linear in sorted(linears)
        for which in ("A", "B", "router")
    }
    order = dict.fromkeys(name.rsplit(".lora_", 1)[0] for name in unstack_experts(stacked, 1))
    assert list(order) == linears


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 8), st.integers(1, 4), st.integers(1, 5), st.sampled_from([torch.float32, torch.bfloat16]), st.data()
)
def test_stacking_and_unstacking_are_inverse(E: int, R: int, D: int, dtype: torch.dtype, data: Any) -> None:
    F = data.draw(st.integers(1, 5))
    stacked = {
        "layers.0.up_proj.loramoe_A.weight": torch.randn(E * R, D).to(dtype),
        "layers.0.up_proj.loramoe_B.weight": torch.randn(F, E * R).to(dtype),
        "layers.0.up_proj.loramoe_router.weight": torch.randn(E, D).to(dtype),
        "lm_head.weight": torch.randn(2, 3),
    }
    original = unstack_experts(stacked, E)
    assert is_original(original)
    assert not is_original(stacked)
    assert original["layers.0.up_proj.lora_A0.weight"].shape == (R, D)
    assert original[f"layers.0.up_proj.lora_B{E - 1}.weight"].shape == (F, R)
    again = stack_experts(original)
    assert again.keys() == stacked.keys()
    assert equal_bit_for_bit(dict(sorted(again.items())), stacked)
    assert equal_bit_for_bit(unstack_experts(again, E), original)
