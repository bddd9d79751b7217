"""What PEFT promises of an adapter that is saved: which files, which names in them, and every way of loading it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraMoeConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loramoe.adapter_files import CheckpointError
from tests.conformance.small import Mlp, config, later_peft, rows, seeded
from tests.helpers import edit, trainable

Maker = Callable[..., Any]
PARTS = {"loramoe_A.weight", "loramoe_B.weight", "loramoe_router.weight"}
SAFE, PICKLED = "adapter_model.safetensors", "adapter_model.bin"


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.is_file()}


# --- which files, which names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("safe", "name"), [(True, SAFE), (False, PICKLED)])
def test_the_files_of_an_adapter(
    safe: bool, name: str, adapted: Maker, tiny_llama: Maker, tmp_path: Path, ids: Tensor
) -> None:
    model = adapted()
    model.save_pretrained(tmp_path, safe_serialization=safe)
    assert files(tmp_path) == {name, "adapter_config.json", "README.md"}
    assert torch.equal(PeftModel.from_pretrained(tiny_llama(), tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["default", "other", "x", pytest.param("lin0", marks=later_peft)])
def test_the_name_of_an_adapter_makes_no_difference(name: str, tmp_path: Path) -> None:
    model = get_peft_model(seeded(Mlp), config("lin0", modules_to_save=["lin1"]), adapter_name=name).eval()
    weights = get_peft_model_state_dict(model, adapter_name=name)
    assert set(weights) == {
        *(f"base_model.model.lin0.{part}" for part in PARTS),
        *(f"base_model.model.lin1.{part}" for part in ("weight", "bias")),
    }
    model.save_pretrained(tmp_path)
    folder = tmp_path if name == "default" else tmp_path / name
    for as_name in ("default", "again"):
        again = PeftModel.from_pretrained(seeded(Mlp), folder, adapter_name=as_name)
        assert torch.equal(again(rows()), model(rows()))


def test_a_name_that_the_prefix_holds_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="Adapter name '?loramoe'? should not be contained in the prefix '?loramoe_'?"):
        get_peft_model(Mlp(), config(), adapter_name="loramoe")


@later_peft
def test_only_the_selected_adapters_are_saved_whatever_their_names_share(tmp_path: Path) -> None:
    model = get_peft_model(Mlp(), config())
    for name in ("default2", "other_default", "efaul"):
        model.add_adapter(name, config())
    model.save_pretrained(tmp_path, selected_adapters=["default", "efaul"])
    assert {folder.name for folder in tmp_path.iterdir() if folder.is_dir()} == {"efaul"}
    assert set(load_file(tmp_path / SAFE)) == {f"base_model.model.lin0.{part}" for part in PARTS}
    with pytest.raises(ValueError, match=r"invalid `selected_adapters` arguments"):
        model.save_pretrained(tmp_path, selected_adapters=["nobody"])


def test_a_folder_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="should be a directory, not a file"):
        get_peft_model(Mlp(), config()).save_pretrained(tmp_path / "file")


def test_another_process_than_the_first_writes_no_adapter(tmp_path: Path) -> None:
    get_peft_model(Mlp(), config()).save_pretrained(tmp_path, is_main_process=False)
    assert not files(tmp_path)


def test_the_weights_to_save_can_be_handed_over(tmp_path: Path) -> None:
    model = get_peft_model(Mlp(), config())
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=zeros)
    assert all(not tensor.any() for tensor in load_file(tmp_path / SAFE).values())


@later_peft
def test_converting_to_plain_lora_while_saving_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`path_initial_model_for_weight_conversion` .* is not supported for LoraMoe"):
        get_peft_model(Mlp(), config()).save_pretrained(
            tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )


@pytest.mark.parametrize(("save", "held"), [("auto", False), (True, True), (False, False)])
def test_embeddings_are_saved_on_demand(
    save: Any, held: bool, adapted: Maker, tiny_llama: Maker, tmp_path: Path
) -> None:
    model = adapted()
    model.get_input_embeddings().weight.data.fill_(0.5)
    model.save_pretrained(tmp_path, save_embedding_layers=save)
    assert ("base_model.model.model.embed_tokens.weight" in load_file(tmp_path / SAFE)) == held
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert bool((again.get_input_embeddings().weight == 0.5).all()) == held


# --- every way of loading ---------------------------------------------------------------------------------------------


def test_loaded_from_a_subfolder(adapted: Maker, tiny_llama: Maker, tmp_path: Path, ids: Tensor) -> None:
    model = adapted()
    model.save_pretrained(tmp_path / "inner")
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path, subfolder="inner")
    again.load_adapter(tmp_path, "second", subfolder="inner")
    assert torch.equal(again(ids).logits, model(ids).logits)
    again.set_adapter("second")
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_configuration_that_is_handed_over_is_the_model_s(saved: Path, tiny_llama: Maker) -> None:
    given = LoraMoeConfig.from_pretrained(saved)
    loaded = PeftModel.from_pretrained(tiny_llama(), saved, config=given, is_trainable=True)
    assert loaded.peft_config["default"] is given
    assert not given.inference_mode


def test_nothing_is_missing_when_more_are_loaded(saved: Path, tiny_llama: Maker) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), saved)
    for name in ("other", "yet-another"):
        result = model.load_adapter(saved, adapter_name=name)
        assert result.missing_keys == result.unexpected_keys == []


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_no_weight_is_left_on_meta(low_cpu_mem_usage: bool, saved: Path, tiny_llama: Maker, ids: Tensor) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), saved, low_cpu_mem_usage=low_cpu_mem_usage)
    model.load_adapter(saved, "other", low_cpu_mem_usage=low_cpu_mem_usage)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    first = model(ids).logits
    model.set_adapter("other")
    assert torch.equal(model(ids).logits, first)


@later_peft
@pytest.mark.parametrize("is_trainable", [False, True])
def test_what_is_trained_after_loading(is_trainable: bool, tmp_path: Path) -> None:
    made = get_peft_model(Mlp(), config("lin0", modules_to_save=["lin1"]))
    made.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(Mlp(), tmp_path, is_trainable=is_trainable)
    assert trainable(model) == (trainable(made) if is_trainable else set())
    assert model.training == is_trainable


def test_loading_into_a_name_that_is_there_replaces_its_weights(
    adapted: Maker, tiny_llama: Maker, perturb: Maker, tmp_path: Path, ids: Tensor
) -> None:
    model, newer = adapted(), perturb(adapted(), seed=11)
    newer.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "default")
    assert list(model.peft_config) == ["default"]
    assert torch.equal(model(ids).logits, newer(ids).logits)


def test_one_of_other_shapes_into_a_name_that_is_there_is_refused(adapted: Maker, tmp_path: Path, ids: Tensor) -> None:
    adapted(lora_nums=5).save_pretrained(tmp_path)
    model = adapted()
    before = model(ids).logits
    with pytest.raises(CheckpointError, match=r"says lora_nums=3, but the weights of .* hold 5 experts"):
        model.load_adapter(tmp_path, "default")
    assert torch.equal(model(ids).logits, before)


def test_names_of_weights_can_be_mapped(adapted: Maker, tiny_llama: Maker, saved: Path, ids: Tensor) -> None:
    tensors = load_file(saved / SAFE)
    old = {name.replace(".mlp.", ".feed_forward."): tensor for name, tensor in tensors.items()}
    save_file(old, saved / SAFE, metadata={"format": "pt"})
    loaded = PeftModel.from_pretrained(tiny_llama(), saved, key_mapping={r"\.feed_forward\.": ".mlp."})
    assert torch.equal(loaded(ids).logits, adapted()(ids).logits)


@pytest.mark.parametrize(
    "option", [{"ephemeral_gpu_offload": True}, {"device_map": {"": "cpu"}}, {"torch_device": "cpu"}]
)
def test_options_of_devices_change_no_weight(
    option: dict[str, Any], adapted: Maker, tiny_llama: Maker, saved: Path, ids: Tensor
) -> None:
    loaded = PeftModel.from_pretrained(tiny_llama(), saved, **option)
    assert torch.equal(loaded(ids).logits, adapted()(ids).logits)


@later_peft
@pytest.mark.filterwarnings("ignore:for base_model.*copying from a non-meta parameter")
def test_a_base_model_partly_on_disk(
    adapted: Maker, saved: Path, tmp_path: Path, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)  # PEFT drops the root of offload_folder, and so writes below the working directory
    parts = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    parts |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    offload = {"offload_folder": tmp_path / "offload"}
    base = AutoModelForCausalLM.from_pretrained(saved.parent / "base", device_map=parts, **offload)
    there = {f"base_model.model.{name}": device for name, device in parts.items()}
    loaded = PeftModel.from_pretrained(base, saved, device_map=there, max_memory={"cpu": 10**9}, **offload)
    assert "meta" in {p.device.type for name, p in loaded.named_parameters() if "loramoe_" in name}
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, adapted()(ids).logits)


# --- state dictionaries -----------------------------------------------------------------------------------------------


@later_peft
def test_what_is_put_on_a_model_stays_the_caller_s() -> None:
    given = get_peft_model_state_dict(get_peft_model(Mlp(), config("lin0", modules_to_save=["lin1"])))
    names, tensors = list(given), list(given.values())
    for _ in range(2):
        result = set_peft_model_state_dict(get_peft_model(Mlp(), config("lin0", modules_to_save=["lin1"])), given)
        assert not result.unexpected_keys
    assert (list(given), [id(tensor) for tensor in given.values()]) == (names, [id(tensor) for tensor in tensors])


@later_peft
@pytest.mark.parametrize("name", ["loramoe_head", "weight_norm", "bias", "lin0_loramoe_A"])
def test_modules_whose_names_look_like_ours_are_told_apart(name: str) -> None:
    class Lookalike(Mlp):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = getattr(self, name)(super().forward(x))
            return out

    def make(seed: int) -> Any:
        base = seeded(Lookalike)
        torch.manual_seed(seed)
        return get_peft_model(base, config("lin0", name)).eval()

    source, target = make(1), make(2)
    weights = get_peft_model_state_dict(source)
    assert len(weights) == 2 * 3
    assert not torch.equal(target(rows()), source(rows()))
    set_peft_model_state_dict(target, weights)
    assert torch.equal(target(rows()), source(rows()))


def test_the_whole_state_dict_goes_there_and_back(adapted: Maker, perturb: Maker, ids: Tensor) -> None:
    source, target = adapted(), perturb(adapted(), seed=8)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(ids).logits, source(ids).logits)


def test_the_weights_of_the_base_alone(two: Any, tiny_llama: Maker) -> None:
    import peft

    if not {"get_base_model_state_dict", "set_base_model_state_dict"} <= set(dir(peft)):
        pytest.skip("functions that peft 0.17 does not have")
    wanted = tiny_llama().state_dict()
    own = peft.get_base_model_state_dict(two)
    assert own.keys() == wanted.keys()
    assert all(torch.equal(own[name], wanted[name]) for name in wanted)
    peft.set_base_model_state_dict(two, {name: torch.zeros_like(tensor) for name, tensor in wanted.items()})
    assert not any(tensor.any() for tensor in peft.get_base_model_state_dict(two).values())


def test_an_adapter_that_was_trained_on_another_base_is_told_by_its_name(saved: Path, tiny_llama: Maker) -> None:
    edit(saved, base_model_name_or_path="elsewhere/another")
    weights = {name: tensor for name, tensor in load_file(saved / SAFE).items() if "layers.0" in name}
    save_file(weights, saved / SAFE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="base model 'elsewhere/another'"):
        PeftModel.from_pretrained(tiny_llama(), saved)
