"""Each arm trains what it says, and as much as the next."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.knowledge_forgetting.arms import (
    ARMS,
    Recipe,
    parameter_groups,
    prepare,
    recipe_of,
    set_blc_weight,
    trainable,
)
from experiments.knowledge_forgetting.train import train
from tests.experiments.knowledge_forgetting.made_up import MadeUpScale

SHAPES = {
    "tiny_llama": {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4, "num_key_value_heads": 4},
    "SmolLM2-135M": {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_adapters_have_equally_many_parameters(shape: str):
    counts = {}
    for name, arm in ARMS.items():
        if arm.kind in ("lora", "loramoe"):
            model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], num_hidden_layers=1, vocab_size=64))
            counts[name] = trainable(prepare(model, arm.kind, arm.recipe))
    mixture = counts["loramoe_free"]
    assert all(0.9 < count / mixture < 1.02 for count in counts.values()), counts


@pytest.mark.parametrize("name", [name for name in ARMS if name not in ("base", "full")])
def test_an_adapter_changes_nothing_at_first_and_leaves_the_base_as_it_was(name: str):
    scale = MadeUpScale()
    base, tokenizer = scale.base()
    frozen = {key: value.clone() for key, value in base.state_dict().items()}
    ids = torch.arange(4, 20)[None]
    before = base(ids).logits
    model = prepare(base, ARMS[name].kind, ARMS[name].recipe)
    model.eval()
    assert torch.equal(model(ids).logits, before)
    train(model, tokenizer, scale.train_rows(16, 0), scale, ARMS[name].recipe, 1e-2)
    assert not torch.equal(model(ids).logits, before)
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, before)
    held = [value for key, value in model.state_dict().items() if "lora" not in key or "base_layer" in key]
    assert len(held) == len(frozen)
    assert all(torch.equal(one, two) for one, two in zip(held, frozen.values(), strict=True))


def test_experts_that_are_held_at_zero_stay_there_and_the_others_learn():
    scale, recipe = MadeUpScale(), recipe_of("loramoe_free", {"zero_experts": 3, "lora_nums": 4})
    base, tokenizer = scale.base()
    model = prepare(base, "loramoe", recipe)
    train(model, tokenizer, scale.train_rows(16, 0), scale, recipe, 1e-2)
    B = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj").weights("default")[2]
    assert B.shape == (64, 16)
    assert not B[:, :12].any()
    assert B[:, 12:].all()


def test_the_routers_can_start_even():
    model = prepare(MadeUpScale().base()[0], "loramoe", Recipe(router_scale=0.0))
    router = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj").weights("default")[0]
    assert not router.any()


def test_a_detached_router_computes_the_same_and_sends_no_gradient_to_the_layers_before_it():
    layers, gradients = [], []
    for detached in (False, True):
        torch.manual_seed(0)
        base = MadeUpScale().base()[0]
        model = prepare(base, "loramoe", Recipe(detached=detached, lora_dropout=0.0)).double()
        layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
        torch.nn.init.ones_(layer.weights("default")[2])
        x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        layers.append((y, layer.weights("default")[0].grad))
        gradients.append(x.grad)
    torch.testing.assert_close(layers[0], layers[1])
    router, A, B = layer.weights("default")
    held = torch.softmax(x.detach() @ router.T, -1).repeat_interleave(4, -1) * 8
    alone = x.detach().requires_grad_()
    (layer.base_layer(alone) + ((alone @ A.T) * held) @ B.T).square().sum().backward()
    torch.testing.assert_close(gradients[1], alone.grad)
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-2)


def test_a_detached_router_is_held_to_the_constraint():
    scale, recipe = MadeUpScale(), recipe_of("loramoe_paper", {"detached": True})
    base, tokenizer = scale.base()
    model = prepare(base, "loramoe", recipe)
    router = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj").weights("default")[0]
    before = router.detach().clone()
    shares = train(model, tokenizer, scale.train_rows(16, 0), scale, recipe, 1e-2).shares
    assert shares is not None
    assert not torch.equal(router, before)


def test_each_part_has_its_learning_rate():
    recipe = Recipe(router_rate=0.1, rate_B=16.0)
    model = prepare(MadeUpScale().base()[0], "loramoe", recipe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, recipe, 1e-3)
    found = {group["lr"]: {names[id(p)].split(".")[-1] for p in group["params"]} for group in groups}
    assert found == {1e-3: {"A"}, 1e-3 * 16: {"B"}, 1e-3 * 0.1: {"router"}}
    assert sum(p.numel() for group in groups for p in group["params"]) == trainable(model)


def test_the_constraint_can_be_warmed_up():
    recipe = Recipe(blc_weight=0.4, blc_warmup=0.5)
    model = prepare(MadeUpScale().base()[0], "loramoe", recipe)
    weights = []
    for progress in (0.125, 0.25, 0.5, 1.0):
        set_blc_weight(model, recipe, progress)
        weights.append(model.peft_config["default"].blc_weight)
    assert weights == [0.1, 0.2, 0.4, 0.4]


def test_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"there is no arm 'lora'\. Choose one of base, full, lora_mlp,"):
        recipe_of("lora", {})
    with pytest.raises(ValueError, match=r"a recipe has no \['rank'\]\. It has \['targets', 'r',"):
        recipe_of("lora_mlp", {"rank": 4})
