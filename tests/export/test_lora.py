"""The plain LoRA: at full rank the mixture with constant gates, below that what PEFT's own conversion gives."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from loramoe.export.adapter import get_active_adapter
from loramoe.export.lora import as_plain_lora, plain_lora, save_lora
from tests.helpers import layers_of

PATTERNS = {"rank_pattern": {"up_proj": 4}, "alpha_pattern": {"down_proj": 7}, "use_rslora": True}


def constant_gates(adapter):
    """Different gates for each layer."""
    generator = torch.Generator().manual_seed(5)
    E = adapter.config.lora_nums
    return {key: torch.rand(E, generator=generator, dtype=torch.float64).softmax(-1) for key in adapter.layers}


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, PATTERNS, {"lora_nums": 1, "blc_weight": 0}])
def test_full_rank_is_the_mixture_with_constant_gates(adapted, options):
    adapter = get_active_adapter(adapted(**options))
    gates = constant_gates(adapter)
    x = torch.randn(5, 48)
    with as_plain_lora(adapter, plain_lora(adapter, gates)):
        found = {key: layer(x[:, : layer.in_features]) for key, layer in adapter.layers.items()}
    for key, layer in adapter.layers.items():
        _, A, B = layer.weights("default")
        experts = zip(gates[key].float(), A.chunk(len(gates[key])), B.chunk(len(gates[key]), dim=1), strict=True)
        inputs = x[:, : layer.in_features]
        added = sum(gate * (inputs @ A_e.T @ B_e.T) for gate, A_e, B_e in experts)
        torch.testing.assert_close(found[key], layer.base_layer(inputs) + layer.scaling["default"] * added)


@pytest.mark.parametrize("rank", [1, 3, 6, 9])
def test_a_lower_rank_is_what_peft_converts_to(adapted, tiny_llama, tmp_path, rank):
    peft = pytest.importorskip("peft", minversion="0.19", reason="an earlier peft has no convert_to_lora")
    model = adapted()
    adapter = get_active_adapter(model)
    gates = constant_gates(adapter)
    save_lora(adapter, plain_lora(adapter, gates), tmp_path)
    whole = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path)
    with pytest.warns(UserWarning, match="already a LoRA"):
        _, expected = peft.convert_to_lora(whole, rank=min(rank, 6))
    for key, (A, B) in plain_lora(adapter, gates, rank).items():
        A_peft, B_peft = (expected[f"base_model.model.{key}.lora_{part}.weight"] for part in "AB")
        assert (A.shape[0], B.shape[1]) == (rank, rank)
        torch.testing.assert_close(B @ A, B_peft @ A_peft, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"], **PATTERNS},
        {"target_modules": r".*\.1\.mlp\.up_proj"},
        {"layers_to_transform": [1], "exclude_modules": ["down_proj"]},
    ],
)
def test_plain_peft_loads_and_merges_what_is_saved(adapted, tiny_llama, ids, tmp_path, options):
    model = adapted(**options)
    adapter = get_active_adapter(model)
    factors = plain_lora(adapter, constant_gates(adapter))
    save_lora(adapter, factors, tmp_path)
    with as_plain_lora(adapter, factors):
        expected = model(ids).logits
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert type(loaded.peft_config["default"]) is LoraConfig
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.merge_and_unload()(ids).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_conv1d_of_gpt2(perturb, ids, tmp_path):
    from peft import LoraMoeConfig, PeftModel

    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=64)).eval()
    state = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = perturb(get_peft_model(base, LoraMoeConfig(r=2, lora_nums=3, target_modules=["c_fc"]))).eval()
    adapter = get_active_adapter(model)
    factors = plain_lora(adapter, constant_gates(adapter))
    save_lora(adapter, factors, tmp_path)
    with as_plain_lora(adapter, factors):
        expected = model(ids).logits
    other = GPT2LMHeadModel(base.config).eval()
    other.load_state_dict(state)
    torch.testing.assert_close(PeftModel.from_pretrained(other, tmp_path)(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_the_adapter_is_back_after_an_error(adapted):
    model = adapted()
    adapter = get_active_adapter(model)
    before = dict(model.named_parameters())
    factors = plain_lora(adapter, constant_gates(adapter))
    with pytest.raises(RuntimeError, match="within"), as_plain_lora(adapter, factors):
        raise RuntimeError("within")
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert len(layers_of(model)) == 6
