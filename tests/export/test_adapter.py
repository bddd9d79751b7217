"""The active adapter and its mean gates: those of a loop over tokens, whatever the batches and the padding."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loramoe.export.adapter import ExportError, get_active_adapter, mean_gates
from loramoe.ops import route
from tests.helpers import layers_of


@torch.no_grad()
def test_mean_gates_are_those_of_a_loop_over_tokens(adapted, samples, batches):
    model = adapted()
    expected, hooks = {}, []
    for key, layer in layers_of(model.get_base_model()).items():

        def see(layer, args, output, key=key):
            router = layer.weights("default")[0].double()
            expected.setdefault(key, []).extend(route(x, router) for x in args[0].double().flatten(0, -2))

        hooks.append(layer.register_forward_hook(see))
    for sample in samples:
        model(torch.tensor([sample["input_ids"]]))
    for hook in hooks:
        hook.remove()
    for size in (1, 5, 12):
        found, tokens = mean_gates(get_active_adapter(model), batches(size), progress=False)
        assert tokens == sum(len(sample["input_ids"]) for sample in samples)
        assert list(found) == list(expected)
        for key, gates in expected.items():
            torch.testing.assert_close(found[key], torch.stack(gates).mean(0), rtol=1e-5, atol=1e-6)


def test_only_layers_of_the_active_adapter(two):
    two.set_adapter("two")
    assert [key.rpartition(".")[2] for key in get_active_adapter(two).layers] == ["q_proj", "up_proj"] * 2


def test_a_layer_outside_of_the_decoder(adapted, batches):
    model = adapted(target_modules=["up_proj", "lm_head"])
    with pytest.raises(ExportError, match="lm_head"):
        mean_gates(get_active_adapter(model), batches(), progress=False)


@pytest.mark.parametrize("kind", ["base", "lora", "several", "offloaded"])
def test_models_without_one_adapter_to_export(kind, tiny_llama, adapted, two):
    model = tiny_llama() if kind == "base" else adapted()
    if kind == "lora":
        model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["up_proj"]))
    elif kind == "several":
        two.base_model.set_adapter(["default", "two"])
        model = two
    elif kind == "offloaded":
        next(iter(layers_of(model).values())).loramoe_experts.to("meta")
    names = {"base": "{}", "lora": "LORA", "several": "two", "offloaded": "offloaded"}
    with pytest.raises(ExportError, match=names[kind]):
        get_active_adapter(model)
