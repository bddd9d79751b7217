"""Base model, tokenizer and adapter as the flags ask for them; attention over packed rows, and its check."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from loramoe import LoraMoeConfig
from loramoe.training import parse
from loramoe.training.arguments import ModelArguments
from loramoe.training.checkpoint import ADAPTER
from loramoe.training.model import (
    BY_SAMPLE,
    adapter_config,
    add_adapter,
    attention_by_sample,
    check_packing,
    empty_base,
    enable_varlen_attention,
    load_base,
    load_tokenizer,
)
from loramoe.utils import UsageError
from tests.tuner.test_architectures import ARCHITECTURES, LLAMA


def training(*flags: str) -> Any:
    return parse(["--base_model", "base", "--dataset_dir", "d", "--output_dir", "o", "--use_cpu", "true", *flags])[2]


def test_a_new_adapter_is_on_the_mlp_and_trainable(tiny_task):
    arguments = ModelArguments(str(tiny_task.base), lora_nums=2, dtype="bfloat16")
    base = load_base(arguments, training())
    assert base.dtype == torch.bfloat16
    model = add_adapter(base, arguments, adapter_config(arguments))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * 3 * 3
    assert all(".mlp." in name and f".{ADAPTER}." in name for name in trainable)


def test_flags_that_the_adapter_replaces_are_named(tiny_task, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    saved = LoraMoeConfig(target_modules=["up_proj"], r=2, task_type="CAUSAL_LM")
    get_peft_model(base, saved).save_pretrained(tmp_path)
    adapter_config(ModelArguments("base", adapter=str(tmp_path), lora_rank=2))
    assert "replaces the flags" not in caplog.text
    assert adapter_config(ModelArguments("base", adapter=str(tmp_path), expert_types="0,0,0,0,1,1,1,1")).r == 2
    assert "replaces the flags: r=2, types_of_experts=(1, 1, 1, 1, 0, 0, 0, 0)" in caplog.text


def test_what_cannot_be_loaded_is_named(tmp_path: Path):
    nowhere = str(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"adapter=.*nowhere holds no adapter"):
        adapter_config(ModelArguments("base", adapter=nowhere))
    with pytest.raises(UsageError, match=r"the tokenizer .*nowhere cannot be loaded"):
        load_tokenizer(ModelArguments(nowhere))
    with pytest.raises(UsageError, match=r"base_model=.*nowhere cannot be loaded"):
        load_base(ModelArguments(nowhere), training())


def test_an_adapter_of_another_method_or_model_is_refused(tiny_task, tmp_path: Path):
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    get_peft_model(base, LoraConfig(target_modules=["up_proj"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"adapter must hold a LoRAMoE adapter; .* is of type"):
        adapter_config(ModelArguments(str(tiny_task.base), adapter=str(tmp_path / "lora")))
    other = LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=48, num_hidden_layers=2, vocab_size=64))
    get_peft_model(other, LoraMoeConfig(lora_nums=3, r=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "other")
    arguments = ModelArguments(str(tiny_task.base), adapter=str(tmp_path / "other"))
    base = load_base(arguments, training())
    with pytest.raises(UsageError, match=r"adapter=.* cannot be loaded: .*shape \[64, 6\] in the adapter"):
        add_adapter(base, arguments, adapter_config(arguments))


@pytest.mark.parametrize("config", ["{", '{"peft_type": "NO"}', '{"peft_type": "LORAMOE", "r": "4"}'])
def test_an_adapter_whose_configuration_is_broken(config: str, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(UsageError, match=r"adapter=.* holds no adapter ") as caught:
        adapter_config(ModelArguments("base", adapter=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_options_of_loading_reach_transformers(tiny_task, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda name, **options: seen.update(options))
    arguments = ModelArguments("base", revision="v1", trust_remote_code=True, attn_implementation="eager")
    args = training()
    load_base(arguments, args)
    assert (seen["revision"], seen["trust_remote_code"], seen["attn_implementation"]) == ("v1", True, "eager")
    assert "device_map" not in seen
    monkeypatch.setattr(type(args), "device", torch.device("cuda", 1))
    load_base(arguments, args)
    assert seen["device_map"] == {"": torch.device("cuda", 1)}


def test_4_bit_layers_compute_in_the_dtype_of_the_training_or_the_saved_one(tiny_task, tmp_path: Path):
    AutoModelForCausalLM.from_pretrained(tiny_task.base, dtype=torch.float16).save_pretrained(tmp_path)
    found = []
    for base, of_training in ((tmp_path, None), (tiny_task.base, None), (tmp_path, torch.bfloat16)):
        arguments = ModelArguments(str(base))
        arguments.load_in_kbits = 4  # the package need not be here
        found.append(arguments.model_options(of_training)["quantization_config"].bnb_4bit_compute_dtype)
    assert found == [torch.float16, torch.float32, torch.bfloat16]


def test_a_base_without_weights_has_the_modules_of_one_with(tiny_task):
    real = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    empty = empty_base(real.config)
    assert [name for name, _ in empty.named_modules()] == [name for name, _ in real.named_modules()]
    assert all(weight.is_meta for weight in empty.parameters())
    real.config.tie_word_embeddings = True
    assert "lm_head.weight" not in dict(empty_base(real.config).named_parameters())


LENGTHS = [3, 1, 5]
CPU = torch.device("cpu")


def model_of(architecture: str, attention: str | None = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = ARCHITECTURES.get(architecture, (LLAMA,))[0] | changes
    wanted = {} if attention is None else {"attn_implementation": attention}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes), **wanted)


@pytest.mark.parametrize(("masked", "window"), [(True, 2), (False, 9)])
def test_attention_by_sample_is_attention_under_the_mask_of_the_row(masked: bool, window: int) -> None:
    module = SimpleNamespace(is_causal=True, num_key_value_groups=2)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 9, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    distance = torch.arange(9)[:, None] - torch.arange(9)
    sample_S = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))
    mask = ((sample_S[:, None] == sample_S) & (distance >= 0) & (distance < window))[None, None]
    expected, _ = sdpa_attention_forward(module, q, k, v, mask)
    bounds = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
    got, weights = attention_by_sample(module, q, k, v, mask if masked else None, cu_seq_lens_q=bounds)
    assert weights is None
    unread = {"cu_seq_lens_q": bounds.to("meta"), "sample_lengths": LENGTHS}  # whose values nobody can ask for
    assert torch.equal(attention_by_sample(module, q, k, v, mask if masked else None, **unread)[0], got)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), (q, k, v)), wanted, rtol=1e-12, atol=1e-14)


def test_without_bounds_it_is_plain_attention(ids: Tensor) -> None:
    model = model_of("llama").eval()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    logits, text = (f() for f in (lambda: model(ids, mask).logits, lambda: model.generate(ids, attention_mask=mask)))
    enable_varlen_attention(model)
    assert model.config._attn_implementation == BY_SAMPLE
    assert torch.equal(model(ids, mask).logits, logits)
    assert torch.equal(model.generate(ids, attention_mask=mask), text)
    eager = model_of("llama", "eager")
    enable_varlen_attention(eager)
    assert eager.config._attn_implementation == "eager"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_that_keep_samples_apart_pass(architecture: str) -> None:
    model = model_of(architecture).to(torch.bfloat16).train()
    model.get_output_embeddings().eval()
    modes = [module.training for module in model.modules()]
    enable_varlen_attention(model)
    state = torch.get_rng_state()
    check_packing(model, model.config, CPU)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)  # or a packed run would have another dropout


class WithCache(nn.Module):
    """The cache that a Llama makes by default makes it leak."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, **inputs: Any) -> Any:
        return self.model(**{**inputs, "use_cache": True})


class Narrow(nn.Module):
    config = LlamaConfig(vocab_size=64)

    def forward(self, input_ids: Tensor) -> Any: ...


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: model_of("opt", "eager"), "does not keep the samples of a packed row apart"),
        (lambda: WithCache(model_of("llama")), "does not keep the samples of a packed row apart"),
        (lambda: model_of("lfm2", layer_types=["conv", "full_attention"]), "this model has conv layers"),
        (Narrow, "does not take packed rows .*unexpected keyword"),
    ],
)
def test_models_that_mix_samples_are_refused(make: Any, message: str) -> None:
    model = make()
    with pytest.raises(ValueError, match=rf"{message}.* Set --packing false"):
        check_packing(model, model.config, CPU)
