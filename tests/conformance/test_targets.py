"""What PEFT promises of which modules are adapted, with which rank and alpha, and of tied weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraMoeConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conformance.small import Deep, Mlp, config, seeded
from tests.helpers import layers_of


def names_of(model: Any) -> list[str]:
    return [name.removeprefix("base_model.model.") for name in layers_of(model)]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"target_modules": ["lin0", "lin1"]}, ["lin0", "lin1"]),
        ({"target_modules": "all-linear"}, ["lin0", "lin1"]),
        ({"target_modules": "lin.*", "exclude_modules": "lin0"}, ["lin1"]),
        ({"target_modules": "all-linear", "exclude_modules": ["lin1"]}, ["lin0"]),
    ],
)
def test_target_and_exclude_modules(options: dict[str, Any], wanted: list[str]) -> None:
    model = get_peft_model(Mlp(), LoraMoeConfig(**options))
    assert model.targeted_module_names == names_of(model) == wanted


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ({"^layers.1.lin0": 5}, {"1.lin0": 5}),
        ({"layers.0.lin0": 5, "lin0": 6}, {"0.lin0": 5, "1.lin0": 6, "2.lin0": 6}),
    ],
)
def test_rank_pattern_and_alpha_pattern(pattern: dict[str, int], wanted: dict[str, int]) -> None:
    options = {"r": 2, "lora_alpha": 1, "rank_pattern": pattern, "alpha_pattern": pattern}
    model = get_peft_model(Deep(), LoraMoeConfig(target_modules="all-linear", **options))
    layers = {name.removeprefix("base_model.model.layers."): layer for name, layer in layers_of(model).items()}
    assert {name: layer.r["default"] for name, layer in layers.items()} == dict.fromkeys(layers, 2) | wanted
    assert all(layer.scaling["default"] == (1 if name in wanted else 0.5) for name, layer in layers.items())
    model.add_adapter("other", config("lin0", rank_pattern={"layers.1.lin0": 8}))
    assert [layer.r["other"] for layer in layers.values() if "other" in layer.r] == [2, 8, 2]


@pytest.mark.parametrize(
    ("options", "warns"),
    [
        ({"target_modules": ["up_proj"]}, False),
        ({"target_modules": ["lm_head"]}, True),
        ({"target_modules": ["up_proj"], "modules_to_save": ["embed_tokens"]}, True),
    ],
    ids=["beside", "adapted head", "trained embedding"],
)
def test_tied_weights(options: dict[str, Any], warns: bool, tmp_path: Path, ids: Tensor) -> None:
    def tied() -> Any:
        size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        return seeded(lambda: LlamaForCausalLM(LlamaConfig(**size, vocab_size=40, tie_word_embeddings=True)))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = get_peft_model(tied(), LoraMoeConfig(init_lora_weights=False, **options)).eval()
        assert any("tie_word_embeddings" in str(warning.message) for warning in caught) == warns
        if "modules_to_save" in options:
            model.get_input_embeddings().modules_to_save["default"].weight.data.add_(1)
        else:
            assert torch.equal(model.get_input_embeddings()(ids), tied().get_input_embeddings()(ids))
        assert torch.equal(model.get_output_embeddings().weight, tied().get_output_embeddings().weight)
        assert not torch.allclose(model(ids).logits, tied()(ids).logits)
        model.save_pretrained(tmp_path)
        assert torch.equal(PeftModel.from_pretrained(tied(), tmp_path)(ids).logits, model(ids).logits)
