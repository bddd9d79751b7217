"""What PEFT promises of a saved adapter: which files, which names in them, and the options of loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraMoeConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loramoe.tuner.state_dict import CheckpointError
from tests.conformance.small import Mlp, config, later_peft, rows, seeded

Maker = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"
NAMES = {f"base_model.model.lin0.loramoe_experts.{part}" for part in ("router", "A", "B")}


@later_peft
@pytest.mark.parametrize("name", ["default", "lin0", "experts", "loramoe_experts"])
def test_names_of_weights_do_not_depend_on_the_adapters(name: str) -> None:
    model = get_peft_model(Mlp(), config("lin0", modules_to_save=["lin1"]), adapter_name=name)
    names = NAMES | {"base_model.model.lin1.weight", "base_model.model.lin1.bias"}
    assert set(get_peft_model_state_dict(model, adapter_name=name)) == names


@later_peft
def test_selected_adapters(tmp_path: Path) -> None:
    model = get_peft_model(Mlp(), config())
    for name in ("default2", "other_default", "efaul"):
        model.add_adapter(name, config())
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not [file for file in (tmp_path / "none").rglob("*") if file.is_file()]
    model.save_pretrained(tmp_path / "two", selected_adapters=["default", "efaul"])
    assert {folder.name for folder in (tmp_path / "two").iterdir() if folder.is_dir()} == {"efaul"}
    assert set(load_file(tmp_path / "two" / WEIGHTS)) == NAMES
    with pytest.raises(ValueError, match=r"invalid `selected_adapters` arguments"):
        model.save_pretrained(tmp_path, selected_adapters=["nobody"])


def test_weights_of_the_caller_are_saved(tmp_path: Path) -> None:
    model = get_peft_model(Mlp(), config())
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=zeros)
    assert not any(tensor.any() for tensor in load_file(tmp_path / WEIGHTS).values())


def test_save_embedding_layers(adapted: Maker, tiny_llama: Maker, tmp_path: Path) -> None:
    model = adapted()
    model.get_input_embeddings().weight.data.fill_(0.5)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert (PeftModel.from_pretrained(tiny_llama(), tmp_path).get_input_embeddings().weight == 0.5).all()


@pytest.mark.parametrize(
    "option",
    [{"ephemeral_gpu_offload": True}, {"device_map": {"": "cpu"}}, {"torch_device": "cpu"}, {"subfolder": "inner"}],
    ids=lambda option: next(iter(option)),
)
def test_options_of_loading(
    option: dict[str, Any], adapted: Maker, tiny_llama: Maker, saved: Path, ids: Tensor
) -> None:
    if "subfolder" in option:
        saved.rename(saved.parent / "inner")
        saved = saved.parent
    wanted, loaded = adapted()(ids).logits, PeftModel.from_pretrained(tiny_llama(), saved, **option)
    assert torch.equal(loaded(ids).logits, wanted)
    loaded.load_adapter(saved, "second", **option)
    loaded.set_adapter("second")
    assert torch.equal(loaded(ids).logits, wanted)


def test_config_and_key_mapping(adapted: Maker, tiny_llama: Maker, saved: Path, ids: Tensor) -> None:
    tensors = {name.replace(".mlp.", ".feed_forward."): t for name, t in load_file(saved / WEIGHTS).items()}
    save_file(tensors, saved / WEIGHTS, metadata={"format": "pt"})
    given = LoraMoeConfig.from_pretrained(saved)
    options = {"config": given, "is_trainable": True, "key_mapping": {r"\.feed_forward\.": ".mlp."}}
    loaded = PeftModel.from_pretrained(tiny_llama(), saved, **options).eval()
    assert loaded.peft_config["default"] is given
    assert not given.inference_mode
    assert torch.equal(loaded(ids).logits, adapted()(ids).logits)


def test_loading_into_an_adapter_replaces_its_weights(
    adapted: Maker, perturb: Maker, tmp_path: Path, ids: Tensor
) -> None:
    model, newer = adapted(), perturb(adapted(), seed=11)
    newer.save_pretrained(tmp_path / "newer")
    model.load_adapter(tmp_path / "newer", "default")
    assert list(model.peft_config) == ["default"]
    wanted = newer(ids).logits
    assert torch.equal(model(ids).logits, wanted)
    adapted(lora_nums=5).save_pretrained(tmp_path / "larger")
    with pytest.raises(CheckpointError, match=r"has the shape \[10, 48\] in the adapter, and \[6, 48\] in this"):
        model.load_adapter(tmp_path / "larger", "default")
    assert torch.equal(model(ids).logits, wanted)


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


@later_peft
@pytest.mark.parametrize("name", ["loramoe_head", "weight_norm", "bias", "lin0_loramoe_experts"])
def test_modules_of_the_base_model_with_names_like_ours(name: str) -> None:
    class Lookalike(Mlp):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = getattr(self, name)(super().forward(x))
            return out

    source, target = (get_peft_model(seeded(Lookalike), config("lin0", name)).eval() for _ in "12")
    target.base_model.model.lin0.loramoe_experts["default"].A.data.zero_()
    weights = get_peft_model_state_dict(source)
    assert len(weights) == 2 * 3
    assert not torch.equal(target(rows()), source(rows()))
    set_peft_model_state_dict(target, weights)
    assert torch.equal(target(rows()), source(rows()))
