"""The plain LoRA: exact where the gates are constant, and otherwise what one with those gates computes."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, LoraMoeConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from loramoe.export import as_plain_lora, mean_gates, plain_lora
from loramoe.export.lora import lora_config
from tests.helpers import layers_of


@pytest.fixture
def reloaded(tiny_llama, tmp_path):
    """Puts an export on a fresh base model, as plain PEFT does."""

    def load(config, weights, base=None):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        save_file(weights, tmp_path / "adapter_model.safetensors")
        model = PeftModel.from_pretrained(base if base is not None else tiny_llama(), tmp_path)
        assert not layers_of(model)
        return model.eval()

    return load


def means(model, batches):
    return {name: each.mean_E for name, each in mean_gates(model, batches, progress=False).items()}


def route_alike(model):
    """Makes all gates 1/E, whatever the input."""
    for layer in layers_of(model).values():
        layer.weights(next(iter(layer.lora_nums)))[0].data.zero_()


PATTERNS = {"rank_pattern": {"up_proj": 3, r"layers\.1\.mlp\.down_proj": 1}, "alpha_pattern": {"down_proj": 5}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_nums": 5, "r": 3, "lora_alpha": 7},
        {"use_rslora": True},
        PATTERNS,
        {**PATTERNS, "use_rslora": True},
        {"target_modules": r".*\.(q_proj|up_proj)"},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
        {"layers_to_transform": [1]},
        {"modules_to_save": ["lm_head"]},
    ],
)
@torch.no_grad()
def test_constant_gates_make_it_exact(adapted, reloaded, batches, ids, options):
    model = adapted(**options)
    route_alike(model)
    expected = model(ids).logits
    plain = reloaded(*plain_lora(model, means(model, batches())))
    torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_one_expert_is_exact(adapted, reloaded, batches, ids):
    model = adapted(lora_nums=1, blc_weight=0.0)
    plain = reloaded(*plain_lora(model, means(model, batches())))
    torch.testing.assert_close(plain(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_it_can_be_merged(adapted, reloaded, batches, ids):
    model = adapted()
    plain = reloaded(*plain_lora(model, means(model, batches())))
    expected = plain(ids).logits
    torch.testing.assert_close(plain.merge_and_unload()(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, **PATTERNS}, {"modules_to_save": ["lm_head"]}])
@torch.no_grad()
def test_the_model_can_compute_it_and_is_itself_again(adapted, reloaded, batches, ids, options):
    model = adapted(**options)
    before, weights = model(ids).logits, dict(model.named_parameters())
    gates = means(model, batches())
    plain = reloaded(*plain_lora(model, gates))
    with as_plain_lora(model, gates):
        as_plain = model(ids).logits
    torch.testing.assert_close(as_plain, plain(ids).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(as_plain, before, atol=0.01), "with these gates the export is no copy"
    assert torch.equal(model(ids).logits, before)
    after = dict(model.named_parameters())
    assert after.keys() == weights.keys()
    assert all(after[name] is weights[name] for name in weights)


def test_an_error_within_leaves_the_model_itself(adapted, batches, ids):
    model = adapted()
    before = model(ids).logits
    gates = means(model, batches())
    with pytest.raises(KeyError), as_plain_lora(model, {name: gates[name] for name in list(gates)[:2]}):
        pass
    with pytest.raises(RuntimeError, match="mine"), as_plain_lora(model, gates):
        raise RuntimeError("mine")
    assert torch.equal(model(ids).logits, before)


@torch.no_grad()
def test_conv1d_can_be_merged(perturb, reloaded, ids):
    def base():
        torch.manual_seed(0)
        size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 64}
        return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=1, eos_token_id=2)).eval()

    model = perturb(get_peft_model(base(), LoraMoeConfig(lora_nums=3, r=2, task_type="CAUSAL_LM"))).eval()
    route_alike(model)
    expected = model(ids).logits
    config, weights = plain_lora(model, means(model, [{"input_ids": ids}]))
    assert config["fan_in_fan_out"] is True
    plain = reloaded(config, weights, base())
    torch.testing.assert_close(plain.merge_and_unload()(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_dtypes_and_names_stay(adapted, batches):
    model = adapted(modules_to_save=["lm_head"])
    for layer in layers_of(model).values():
        experts = layer.loramoe_experts["default"]
        experts.A.data, experts.B.data = experts.A.data.to(torch.bfloat16), experts.B.data.to(torch.bfloat16)
    gates = {name: torch.full((3,), 1 / 3) for name in layers_of(model.get_base_model())}
    config, weights = plain_lora(model, gates)
    assert weights.pop("base_model.model.lm_head.weight").dtype == torch.float32
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    linears = [f"base_model.model.model.layers.{n}.mlp.{k}_proj" for n in (0, 1) for k in ("gate", "up", "down")]
    assert set(weights) == {f"{linear}.lora_{part}.weight" for linear in linears for part in "AB"}
    assert config["target_modules"] == ["down_proj", "gate_proj", "up_proj"]
    assert config["modules_to_save"] == ["lm_head"]


def test_the_active_adapter_of_several(two, batches):
    two.set_adapter("two")
    config, weights = plain_lora(two, means(two, batches()))
    assert config["r"] == 15
    assert config["target_modules"] == ["q_proj", "up_proj"]
    assert len(weights) == 8
    assert {tensor.shape[0] for name, tensor in weights.items() if "lora_A" in name} == {15}


def scaling(config, linear):
    """Scaling of a linear, as PEFT's LoRA has it."""
    r = config.rank_pattern.get(linear, config.r)
    alpha = config.alpha_pattern.get(linear, config.lora_alpha)
    return alpha / (r**0.5 if config.use_rslora else r)


@given(
    E=st.integers(1, 12),
    r=st.integers(1, 16),
    alpha=st.one_of(st.integers(1, 64), st.floats(0.1, 64)),
    ranks=st.dictionaries(st.sampled_from("abc"), st.integers(1, 16)),
    alphas=st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 64)),
    use_rslora=st.booleans(),
)
def test_every_scaling_stays(E, r, alpha, ranks, alphas, use_rslora):
    patterns = {"rank_pattern": ranks, "alpha_pattern": alphas, "use_rslora": use_rslora}
    ours = LoraMoeConfig(lora_nums=E, r=r, lora_alpha=alpha, blc_weight=0, target_modules=["a"], **patterns)
    plain = json.loads(json.dumps(lora_config(ours)))
    lora = LoraConfig(**{name: value for name, value in plain.items() if name != "peft_type"})
    for linear in "abcd":
        assert lora.rank_pattern.get(linear, lora.r) == E * ours.rank_pattern.get(linear, ours.r)
        assert scaling(lora, linear) == pytest.approx(scaling(ours, linear), rel=1e-12)


def test_a_whole_alpha_is_an_int():
    config = lora_config(LoraMoeConfig(lora_nums=8, r=4, lora_alpha=32.0, target_modules=["a"]))
    assert (config["r"], config["lora_alpha"], type(config["lora_alpha"])) == (32, 256, int)
