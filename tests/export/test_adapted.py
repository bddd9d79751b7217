"""What can be exported, and what a batch must be; the model is left as it was."""

from __future__ import annotations

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loramoe.export.adapted import ExportError, adapted, in_evaluation, on_device_of, real_tokens
from tests.helpers import layers_of, trainable


@pytest.fixture
def loramoe_model(request):
    return request.getfixturevalue("adapted")()


def test_the_active_adapter_and_its_linears(loramoe_model):
    found = adapted(loramoe_model)
    assert found.name == "default"
    assert found.config is loramoe_model.peft_config["default"]
    assert list(found.layers) == [f"model.layers.{n}.mlp.{k}_proj" for n in (0, 1) for k in ("gate", "up", "down")]


def test_only_the_linears_of_the_active_adapter(two):
    two.set_adapter("two")
    assert [name.rpartition(".")[2] for name in adapted(two).layers] == ["q_proj", "up_proj"] * 2


def test_no_peft_model(tiny_llama):
    with pytest.raises(ExportError, match="takes a PeftModel; got LlamaForCausalLM"):
        adapted(tiny_llama())


@pytest.mark.parametrize("active", [[], ["default", "two"]])
def test_not_one_active_adapter(two, active):
    two.base_model.set_adapter(active)
    message = f"one adapter is exported at a time; active are {active}. Choose one with model.set_adapter(name)."
    with pytest.raises(ExportError, match=re.escape(message)):
        adapted(two)


def test_another_kind_of_adapter(tiny_llama):
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["up_proj"]))
    with pytest.raises(ExportError, match="'default' is of type LORA; only LoRAMoE needs this export"):
        adapted(model)


def test_a_disabled_adapter(loramoe_model):
    with loramoe_model.disable_adapter(), pytest.raises(ExportError, match="'default' is disabled"):
        adapted(loramoe_model)


def test_weights_that_are_not_in_memory(loramoe_model):
    layer = next(iter(layers_of(loramoe_model).values()))
    layer.loramoe_experts["default"].to("meta")
    with pytest.raises(ExportError, match="'default' are on the meta device"):
        adapted(loramoe_model)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_as_it_was(loramoe_model, training):
    loramoe_model.train(training)
    layers_of(loramoe_model)["base_model.model.model.layers.0.mlp.up_proj"].loramoe_experts.requires_grad_(False)
    before = trainable(loramoe_model)
    with in_evaluation(loramoe_model), loramoe_model.disable_adapter():
        assert not loramoe_model.training
    assert trainable(loramoe_model) == before
    assert {module.training for module in loramoe_model.modules()} == {training}


def test_a_batch_without_tokens(loramoe_model):
    with pytest.raises(ExportError, match=r"must hold input_ids; got \['inputs_embeds'\]"):
        on_device_of(loramoe_model, {"inputs_embeds": torch.zeros(1, 2, 32)})


def test_a_mask_of_another_shape(ids):
    with pytest.raises(ExportError, match=r"attention_mask must be \[B, S\].*got \[2, 1, 10, 10\] beside \[2, 10\]"):
        real_tokens({"input_ids": ids, "attention_mask": torch.ones(2, 1, 10, 10)})
