"""The plain LoRA: mean gates of a loop over tokens; at full rank the mixture with these, below that what PEFT makes."""

from __future__ import annotations

import peft
import pytest
import torch
from peft import LoraConfig, LoraMoeConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from loramoe.export.lora import adapter_layers, as_plain_lora, mean_gates, plain_lora, save_lora
from loramoe.ops import route
from loramoe.utils import UsageError

PATTERNS = {"rank_pattern": {"up_proj": 4}, "alpha_pattern": {"down_proj": 7}, "use_rslora": True}


def constant_gates(model):
    """Different gates for each layer."""
    generator = torch.Generator().manual_seed(5)
    E = model.active_peft_config.lora_nums
    return {key: torch.rand(E, generator=generator, dtype=torch.float64).softmax(-1) for key in adapter_layers(model)}


@torch.no_grad()
def test_mean_gates_are_those_of_a_loop_over_tokens(adapted, samples, batches):
    model = adapted()
    expected, hooks = {}, []
    for key, layer in adapter_layers(model).items():

        def see(layer, args, output, key=key):
            router = layer.weights("default")[0].double()
            expected.setdefault(key, []).extend(route(x, router) for x in args[0].double().flatten(0, -2))

        hooks.append(layer.register_forward_hook(see))
    for sample in samples:
        model(torch.tensor([sample["input_ids"]]))
    for hook in hooks:
        hook.remove()
    for size in (1, 5):
        found, tokens = mean_gates(model, batches(size))
        assert tokens == sum(len(sample["input_ids"]) for sample in samples)
        assert list(found) == list(expected)
        for key, gates in expected.items():
            torch.testing.assert_close(found[key], torch.stack(gates).mean(0), rtol=1e-5, atol=1e-6)


def test_only_layers_of_the_active_adapter(two):
    two.set_adapter("two")
    assert [key.rpartition(".")[2] for key in adapter_layers(two)] == ["q_proj", "up_proj"] * 2


def test_models_and_samples_without_an_export(tiny_llama, adapted, batches):
    for model in (tiny_llama(), get_peft_model(tiny_llama(), LoraConfig(target_modules=["up_proj"]))):
        with pytest.raises(UsageError, match="LORAMOE"):
            adapter_layers(model)
    with pytest.raises(UsageError, match="lm_head"), torch.no_grad():
        mean_gates(adapted(target_modules=["up_proj", "lm_head"]), batches())
    with pytest.raises(UsageError, match="token"):
        mean_gates(adapted(), [])


@torch.no_grad()
@pytest.mark.parametrize("options", [PATTERNS, {"lora_nums": 1, "blc_weight": 0}])
def test_full_rank_is_the_mixture_with_constant_gates(adapted, options):
    model = adapted(**options)
    before, gates, x = dict(model.named_parameters()), constant_gates(model), torch.randn(5, 48)
    with as_plain_lora(model, plain_lora(model, gates)):
        found = {key: layer(x[:, : layer.in_features]) for key, layer in adapter_layers(model).items()}
    for key, layer in adapter_layers(model).items():
        _, A, B = layer.weights("default")
        experts = zip(gates[key].float(), A.chunk(len(gates[key])), B.chunk(len(gates[key]), dim=1), strict=True)
        inputs = x[:, : layer.in_features]
        added = sum(gate * (inputs @ A_e.T @ B_e.T) for gate, A_e, B_e in experts)
        torch.testing.assert_close(found[key], layer.base_layer(inputs) + layer.scaling["default"] * added)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


@pytest.mark.skipif(not hasattr(peft, "convert_to_lora"), reason="needs peft 0.19")
@pytest.mark.parametrize("rank", [3, 9])
def test_another_rank_is_what_peft_converts_to(adapted, tiny_llama, tmp_path, rank):
    model = adapted()
    gates = constant_gates(model)
    save_lora(model, plain_lora(model, gates), tmp_path)
    with pytest.warns(UserWarning, match="already a LoRA"):
        _, expected = peft.convert_to_lora(PeftModel.from_pretrained(tiny_llama(), tmp_path), rank=min(rank, 6))
    for key, (A, B) in plain_lora(model, gates, rank).items():
        A_peft, B_peft = (expected[f"base_model.model.{key}.lora_{part}.weight"] for part in "AB")
        assert (A.shape[0], B.shape[1]) == (rank, rank)
        torch.testing.assert_close(B @ A, B_peft @ A_peft, rtol=1e-4, atol=1e-4)


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=64)).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"], **PATTERNS},
        {"target_modules": r".*\.1\.mlp\.up_proj"},
        {"layers_to_transform": [1], "exclude_modules": ["down_proj"]},
        {"target_modules": ["c_fc"]},
    ],
)
def test_plain_peft_loads_and_merges_what_is_saved(perturb, tiny_llama, ids, tmp_path, options):
    make = gpt2 if "c_fc" in options.get("target_modules", "") else tiny_llama
    model = perturb(get_peft_model(make(), LoraMoeConfig(lora_nums=3, r=2, **options))).eval()
    factors = plain_lora(model, constant_gates(model))
    save_lora(model, factors, tmp_path)
    with as_plain_lora(model, factors):
        expected = model(ids).logits
    loaded = PeftModel.from_pretrained(make(), tmp_path).eval()
    assert type(loaded.peft_config["default"]) is LoraConfig
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.merge_and_unload()(ids).logits, expected, rtol=1e-4, atol=1e-4)
