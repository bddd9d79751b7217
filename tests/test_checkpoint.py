"""Adapters of the original release: read, converted and written back without changing a bit, or refused by name."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from loramoe import checkpoint
from loramoe.checkpoint import (
    CheckpointError,
    config_from_original,
    config_to_original,
    convert,
    is_original,
    is_original_folder,
    main,
    read_adapter,
    stack_experts,
    unstack_experts,
)

GOLDEN = Path(__file__).parent / "golden"
ORIGINAL = GOLDEN / "six_experts_balanced" / "adapter"


def base() -> Any:
    """The golden base model, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "base").eval()


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A copy of the original adapter, to be spoilt."""
    return Path(shutil.copytree(ORIGINAL, tmp_path / "original"))


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """The original adapter, converted."""
    convert(ORIGINAL, tmp_path / "ours")
    return tmp_path / "ours"


def equal_bit_for_bit(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names in the same order, with the same numbers of the same dtype."""
    return list(one) == list(other) and all(
        one[name].dtype is other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of an adapter's configuration."""
    file = folder / checkpoint.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


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
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        PeftModel.from_pretrained(base(), original)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
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


def test_originals_are_told_by_their_configuration(converted: Path, tmp_path: Path) -> None:
    assert is_original_folder(ORIGINAL)
    assert is_original_folder(str(ORIGINAL))
    assert not is_original_folder(converted)
    assert not is_original_folder("some-one/some-model")
    shutil.copytree(ORIGINAL, tmp_path / "plain")
    edit(tmp_path / "plain", lora_nums=None)
    assert not is_original_folder(tmp_path / "plain")


# --- what is refused --------------------------------------------------------------------------------------------------


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
