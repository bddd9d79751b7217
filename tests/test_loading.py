"""Loading for use: adapters of several methods take turns on one base model, which stays what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, LoraMoeConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from loramoe.evaluation.adapters import load_adapter_on
from loramoe.loading import BaseArguments, base_name, load_base, load_tokenizer
from loramoe.utils import UsageError


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
    base = load_base(BaseArguments(str(tiny_task.base)), device="cpu")
    before = base(ids).logits
    with load_adapter_on(base, None) as model:
        assert model is base
    said = {}
    for name, folder in adapters.items():
        with load_adapter_on(base, folder) as model:
            assert not model.training
            said[name] = model(ids).logits
        assert torch.equal(base(ids).logits, before)
        assert not torch.allclose(said[name], before, atol=1e-3)
    assert not torch.allclose(said["lora"], said["loramoe"], atol=1e-3)


def test_the_base_comes_back_after_an_error(tiny_task, adapters, ids) -> None:
    base = load_base(BaseArguments(str(tiny_task.base)), device="cpu")
    before = base(ids).logits
    with pytest.raises(RuntimeError, match="in the midst"), load_adapter_on(base, adapters["loramoe"]):
        raise RuntimeError("in the midst")
    assert torch.equal(base(ids).logits, before)


def qwen() -> Qwen2ForCausalLM:
    """A model with biases and tied embeddings, the same one each time."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(**size, num_key_value_heads=2, vocab_size=64, tie_word_embeddings=True)).eval()


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"target_modules": ["q_proj", "embed_tokens"]},  # its embeddings are saved with it
    ],
)
def test_the_base_comes_back_whatever_an_adapter_changes(options, ids, tmp_path: Path) -> None:
    config = LoraConfig(
        **{"target_modules": ["q_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"} | options
    )
    trained = get_peft_model(qwen(), config)
    for parameter in trained.parameters():
        parameter.data += torch.randn_like(parameter)
    trained.save_pretrained(tmp_path, save_embedding_layers="embed_tokens" in config.target_modules)
    base, untouched = qwen(), qwen().state_dict()
    before = base(ids).logits
    with load_adapter_on(base, str(tmp_path)) as model:
        torch.testing.assert_close(model(ids).logits, _alone(tmp_path, ids))
        assert not torch.allclose(model(ids).logits, before, atol=1e-3)
    assert base.lm_head.weight is base.model.embed_tokens.weight
    assert base.state_dict().keys() == untouched.keys()
    assert all(torch.equal(value, untouched[name]) for name, value in base.state_dict().items())
    assert torch.equal(base(ids).logits, before)


def _alone(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    return PeftModel.from_pretrained(qwen(), str(folder)).eval()(ids).logits


@pytest.mark.filterwarnings("error:Already found a `peft_config`")
@pytest.mark.parametrize("kind", ["loramoe", "lora"])
def test_the_base_comes_back_where_loading_fails_half_way(kind, tiny_task, adapters, ids) -> None:
    base = load_base(BaseArguments(str(tiny_task.base)), device="cpu")
    before, names = base(ids).logits, [name for name, _ in base.named_modules()]
    config = Path(adapters[kind]) / "adapter_config.json"
    right = config.read_text()
    config.write_text(json.dumps(json.loads(right) | {"r": 3}))
    with (
        pytest.raises(UsageError, match=r"cannot be loaded on this base: .*(has the shape|size mismatch)"),
        load_adapter_on(base, adapters[kind]),
    ):
        pass
    assert [name for name, _ in base.named_modules()] == names
    assert not base._forward_hooks
    assert not base._forward_pre_hooks
    assert torch.equal(base(ids).logits, before)
    config.write_text(right)
    with load_adapter_on(base, adapters[kind]) as model:
        assert not torch.allclose(model(ids).logits, before, atol=1e-3)


@pytest.mark.parametrize("method", [PrefixTuningConfig, PromptTuningConfig])
def test_adapters_of_virtual_tokens_are_refused(method, tiny_task, tmp_path: Path) -> None:
    base = load_base(BaseArguments(str(tiny_task.base)), device="cpu")
    config = method(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_task.base), config).save_pretrained(tmp_path)
    said = (
        rf"the adapter .* is of type {config.peft_type.value}, whose virtual tokens would make likelihoods wrong here\."
    )
    with pytest.raises(UsageError, match=said), load_adapter_on(base, str(tmp_path)):
        pass


def test_a_device_that_is_not_there(tiny_task) -> None:
    with pytest.raises(UsageError, match=r"set --device to one that is here, got 'cuda:99': "):
        load_base(BaseArguments(str(tiny_task.base)), device="cuda:99")


def test_dtype(tiny_task) -> None:
    loaded = load_base(BaseArguments(str(tiny_task.base), dtype="bfloat16"), device="cpu")
    assert loaded.dtype == torch.bfloat16


def test_bits(tiny_task) -> None:
    pytest.importorskip("bitsandbytes", reason="4 bits need bitsandbytes, which is not installed")
    loaded = load_base(BaseArguments(str(tiny_task.base), load_in_kbits=4), device="cpu")
    assert type(loaded.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"


def test_the_tokenizer_of_the_first_adapter_that_has_one(tiny_task, adapters, tmp_path: Path) -> None:
    own = load_tokenizer(str(tiny_task.base), list(adapters.values()))
    own.add_tokens(["new"])
    own.save_pretrained(adapters["lora"])
    assert len(load_tokenizer(str(tiny_task.base), list(adapters.values()))) == len(own)
    assert len(load_tokenizer(str(tiny_task.base), [adapters["loramoe"]])) == len(own) - 1


def test_different_tokenizers_are_refused(tiny_task, adapters) -> None:
    own = load_tokenizer(str(tiny_task.base), [])
    for folder in adapters.values():
        own.save_pretrained(folder)
    assert len(load_tokenizer(str(tiny_task.base), list(adapters.values()))) == len(own)
    own.add_tokens(["new"])
    own.save_pretrained(adapters["lora"])
    with pytest.raises(ValueError, match=r"bring different tokenizers, .* Compare them in runs of their own\."):
        load_tokenizer(str(tiny_task.base), list(adapters.values()))


def test_the_base_of_the_adapters(tiny_task, adapters, tmp_path: Path) -> None:
    assert base_name(None, list(adapters.values())) == str(tiny_task.base)
    assert base_name("other", list(adapters.values())) == "other"
    config = Path(adapters["lora"]) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "another"}))
    with pytest.raises(
        ValueError, match=r"trained on different base models, \['.*', 'another'\]\. Compare those of one"
    ):
        base_name(None, list(adapters.values()))
    assert base_name("other", list(adapters.values())) == "other"
    with pytest.raises(FileNotFoundError, match=r"no adapter at .*none: adapter_config.json is not there"):
        base_name("other", [adapters["lora"], str(tmp_path / "none")])
