"""Loading for use: adapters of several methods take turns on one base model, which stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, LoraMoeConfig, get_peft_model
from transformers import AutoModelForCausalLM

from loramoe.loading import attached, base_name, load_base, load_tokenizer
from loramoe.training.model_arguments import ModelArguments


@pytest.fixture
def adapters(tiny_task, tmp_path: Path) -> dict[str, str]:
    """Folders of a LoRAMoE adapter and of a LoRA that change what the model says."""
    configs = {
        "loramoe": LoraMoeConfig(lora_nums=2, lora_alpha=320, init_lora_weights=False, task_type="CAUSAL_LM"),
        "lora": LoraConfig(r=2, lora_alpha=320, init_lora_weights=False, target_modules=["q_proj"]),
    }
    for name, config in configs.items():
        torch.manual_seed(3)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_task.base), config)
        model.save_pretrained(tmp_path / name)
    return {name: str(tmp_path / name) for name in configs}


@pytest.mark.filterwarnings("error:Already found a `peft_config`")
def test_adapters_take_turns(tiny_task, adapters, ids) -> None:
    base = load_base(ModelArguments(model_name_or_path=str(tiny_task.base)), device="cpu")
    before = base(ids).logits
    with attached(base, None) as model:
        assert model is base
    said = {}
    for name, folder in adapters.items():
        with attached(base, folder) as model:
            assert not model.training
            said[name] = model(ids).logits
        assert torch.equal(base(ids).logits, before)
        assert not torch.allclose(said[name], before, atol=1e-3)
    assert not torch.allclose(said["lora"], said["loramoe"], atol=1e-3)


def test_the_base_comes_back_after_an_error(tiny_task, adapters, ids) -> None:
    base = load_base(ModelArguments(model_name_or_path=str(tiny_task.base)), device="cpu")
    before = base(ids).logits
    with pytest.raises(RuntimeError, match="in the midst"), attached(base, adapters["loramoe"]):
        raise RuntimeError("in the midst")
    assert torch.equal(base(ids).logits, before)


def test_dtype(tiny_task) -> None:
    loaded = load_base(ModelArguments(model_name_or_path=str(tiny_task.base), torch_dtype="bfloat16"), device="cpu")
    assert loaded.dtype == torch.bfloat16


def test_bits(tiny_task) -> None:
    pytest.importorskip("bitsandbytes", reason="4 bits need bitsandbytes, which is not installed")
    loaded = load_base(ModelArguments(model_name_or_path=str(tiny_task.base), load_in_kbits=4), device="cpu")
    assert type(loaded.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"


def test_the_tokenizer_of_the_first_adapter_that_has_one(tiny_task, adapters, tmp_path: Path) -> None:
    own = load_tokenizer(str(tiny_task.base), list(adapters.values()))
    own.add_tokens(["new"])
    own.save_pretrained(adapters["lora"])
    assert len(load_tokenizer(str(tiny_task.base), list(adapters.values()))) == len(own)
    assert len(load_tokenizer(str(tiny_task.base), [adapters["loramoe"]])) == len(own) - 1


def test_the_base_of_the_first_adapter(tiny_task, adapters, tmp_path: Path) -> None:
    assert base_name(None, list(adapters.values())) == str(tiny_task.base)
    assert base_name("other", list(adapters.values())) == "other"
    with pytest.raises(FileNotFoundError, match=r"no adapter at .*none: adapter_config.json is not there"):
        base_name("other", [adapters["lora"], str(tmp_path / "none")])
