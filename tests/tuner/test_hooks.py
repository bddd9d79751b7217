"""The constraint in the model's forward: its value, its share of a step, who passes what, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import loramoe
from loramoe import LoraMoeConfig
from loramoe.balance.constraint import coefficient, localized_balance, rows_as_samples
from loramoe.tuner.layer import LoraMoeLayer
from tests.constrained import adapted, batch, llama, without


def lm_loss(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(**without(inputs, "task_types")).loss


def constraint_by_hand(model: Any, inputs: dict[str, Tensor], config: LoraMoeConfig) -> Tensor:
    """The sum over the adapted layers, from inputs that ordinary forward hooks see."""
    seen: list[tuple[LoraMoeLayer, Tensor]] = []
    layers = [m for m in model.modules() if isinstance(m, LoraMoeLayer)]
    hooks = [m.register_forward_hook(lambda layer, args, out: seen.append((layer, args[0]))) for m in layers]
    lm_loss(model, inputs)
    for hook in hooks:
        hook.remove()
    I_ME = coefficient(inputs["task_types"], config.types_of_experts, config.blc_alpha, config.blc_target)
    total = torch.zeros(())
    for layer, x in seen:
        gates = (x @ layer.weights("default")[0].T).softmax(-1)
        total = total + localized_balance(
            rows_as_samples(inputs["attention_mask"]).importance(gates, config.blc_importance), I_ME
        )
    return total


def router_gradient(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for name, p in model.named_parameters() if "router" in name])


@pytest.mark.parametrize(
    "options",
    [
        {"blc_target": "paper", "blc_importance": "sum"},
        {"blc_target": "match"},
        {"lora_nums": 5, "expert_types": [2, 0, 1, 2, 0]},
    ],
)
def test_loss_contains_the_constraint_of_every_layer(options: dict[str, Any]) -> None:
    model, inputs = adapted(blc_weight=0.3, blc_alpha=0.4, **options), batch()
    if "expert_types" in options:
        inputs["task_types"] = torch.tensor([2, 0, 1])
    config = model.peft_config["default"]
    expected = lm_loss(model, inputs) + 0.3 * constraint_by_hand(model, inputs, config)
    torch.testing.assert_close(model(**inputs).loss, expected)


def test_evaluation_loss_is_the_language_models_alone() -> None:
    model, inputs = adapted(blc_weight=1.0).eval(), batch()
    assert torch.equal(model(**inputs).loss, lm_loss(model, inputs))
    assert loramoe.last_balance(model).constraint > 0


def test_a_changed_weight_takes_effect_at_once() -> None:
    model, inputs = adapted(blc_weight=0.1), batch()
    model.peft_config["default"].blc_weight = 0.0
    assert torch.equal(model(**inputs).loss, lm_loss(model, inputs))


def test_positional_arguments() -> None:
    base, inputs = llama(), batch()
    expected = adapted(base)(**inputs).loss
    positional = (inputs["input_ids"], inputs["attention_mask"], None, None, None, inputs["labels"])
    assert torch.equal(base(*positional, task_types=inputs["task_types"]).loss, expected)
    with pytest.warns(UserWarning, match="this training batch came without task_types"):
        base(*positional)


def test_one_expert_has_no_constraint() -> None:
    model, inputs = adapted(lora_nums=1, blc_weight=0.0), batch()
    assert torch.equal(model(**inputs).loss, lm_loss(model, inputs))
    assert loramoe.last_balance(model).constraint == 0


def test_the_balance_can_be_read() -> None:
    model, inputs = adapted(), batch()
    assert loramoe.last_balance(model) is None
    model(**inputs)
    balance = loramoe.last_balance(model)
    assert balance.task_types == (0, 1)
    assert balance.expert_types == (1, 1, 0, 0)
    assert balance.tokens_T.tolist() == [8 + 3, 5]
    assert balance.gate_TLE.shape == (2, 6, 4)
    assert balance.layers[0] == "model.layers.0.mlp.gate_proj"
    torch.testing.assert_close(balance.gate_TLE.sum(-1), torch.ones(2, 6))
    torch.testing.assert_close(balance.constraint, balance.constraint_L.sum())
    assert not any(t.requires_grad for t in (balance.constraint, balance.constraint_L, balance.gate_TLE))


@pytest.mark.parametrize("blc_importance", ["mean", "sum"])
def test_the_mean_gate_is_the_mean_over_the_real_tokens_of_a_type(blc_importance: str) -> None:
    model = adapted(lora_nums=2, target_modules=["layers.0.mlp.gate_proj"], blc_importance=blc_importance)
    inputs = batch()
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.gate_proj")
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda layer, args, out: seen.append(args[0]))
    model(**inputs)
    hook.remove()
    gates = (seen[0] @ layer.weights("default")[0].T).softmax(-1)
    expected = torch.cat([gates[0, :8], gates[2, :3]]).mean(0)
    torch.testing.assert_close(loramoe.last_balance(model).gate_TLE[0, 0], expected)


@pytest.mark.parametrize(("padded", "types"), [([0, 2], (1,)), ([0], (0, 1)), ([0, 1, 2], ())])
def test_a_type_of_padding_alone_is_not_among_what_was_seen(padded: list[int], types: tuple[int, ...]) -> None:
    model, inputs = adapted(), batch(lengths=(8, 1, 3))
    inputs["attention_mask"][padded] = 0
    model(**inputs)
    balance = loramoe.last_balance(model)
    assert balance.task_types == types
    assert balance.gate_TLE.shape == (len(types), 6, 4)
    assert (balance.tokens_T > 0).all()
    assert balance.gate_TLE.isfinite().all()
    assert balance.constraint.isfinite()


def test_two_adapters_each_add_their_constraint() -> None:
    model, inputs = adapted(blc_weight=0.5), batch()
    torch.manual_seed(2)
    model.add_adapter("other", LoraMoeConfig(lora_nums=2, blc_weight=0.25, lora_dropout=0.0, init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])
    loss, lm = model(**inputs).loss, lm_loss(model, inputs)
    default, other = (loramoe.last_balance(model, name) for name in ("default", "other"))
    torch.testing.assert_close(loss - lm, 0.5 * default.constraint + 0.25 * other.constraint)
    assert other.gate_TLE.shape[-1] == 2


def test_disabled_adapters_have_no_constraint() -> None:
    base = llama()
    expected = base.train()(**without(batch(), "task_types")).loss
    model = adapted(base)
    with model.disable_adapter():
        assert torch.equal(model(**batch()).loss, expected)


# --- The share of a step ---------------------------------------------------------------------------------------------


def test_micro_batches_of_a_step_add_up_to_their_token_weighted_mean() -> None:
    """Given num_items_in_batch, LM loss and constraint of a micro-batch both count by its share of the label tokens."""
    model = adapted(blc_weight=0.7)
    micro = [batch(1, lengths=(8, 4)), batch(2, lengths=(3, 6))]
    tokens = [(m["labels"][:, 1:] != -100).sum() for m in micro]
    step = torch.stack(tokens).sum()
    got = sum(model(**m, num_items_in_batch=step).loss for m in micro)
    alone = torch.stack([model(**m).loss for m in micro])
    torch.testing.assert_close(got, (alone * torch.stack(tokens) / step).sum())


# --- Gradient checkpointing ------------------------------------------------------------------------------------------


def test_gradient_checkpointing_changes_nothing() -> None:
    model, inputs = adapted(blc_weight=1.0), batch()
    loss = model(**inputs).loss
    loss.backward()
    expected = router_gradient(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = model(**inputs).loss
    checkpointed.backward()
    torch.testing.assert_close(checkpointed, loss)
    torch.testing.assert_close(router_gradient(model), expected)
    assert expected.abs().max() > 0


def test_autocast_does_not_round_what_is_counted() -> None:
    model, inputs = adapted(), batch(lengths=(8, 8, 8))
    inputs = {name: value.repeat(200, *[1] * (value.dim() - 1)) for name, value in inputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**inputs)
    balance = loramoe.last_balance(model)
    assert balance.tokens_T.tolist() == [3200, 1600]  # bfloat16 has no 3,200
    assert balance.gate_TLE.dtype == balance.constraint_L.dtype == torch.float32
    torch.testing.assert_close(balance.gate_TLE.sum(-1), torch.ones(2, 6), rtol=1e-5, atol=0)  # not so in bfloat16


# --- What is refused, and what is warned once -------------------------------------------------------------------------


def test_a_linear_that_sees_other_tokens_is_named() -> None:
    model = adapted(target_modules=["gate_proj", "lm_head"])
    with pytest.raises(ValueError, match=r"lm_head saw 3 tokens, the batch has \[3, 8\] = 24"):
        model(**without(batch(), "labels"), logits_to_keep=1)


def test_the_entropy_of_the_gates_is_that_of_the_real_tokens() -> None:
    model, inputs = adapted(lora_nums=2, target_modules=["layers.0.mlp.gate_proj"]).eval(), batch()
    for name, parameter in model.named_parameters():
        if "router" in name:
            parameter.data.zero_()
    with torch.no_grad():
        model(**inputs)
    torch.testing.assert_close(loramoe.last_balance(model).entropy_LM, torch.full((1, 3), 2.0).log())


def test_a_type_that_no_expert_has_is_refused() -> None:
    with pytest.raises(ValueError, match="task_types has 7"):
        adapted()(**{**batch(), "task_types": torch.tensor([0, 7, 1])})


def test_layers_that_are_shared_are_refused() -> None:
    base = llama()
    base.model.layers[1].mlp = base.model.layers[0].mlp
    model = adapted(base)
    told = r"layers\.0\.mlp\.\w+ was called twice in one forward pass, .* or give no task_types and set blc_weight=0"
    for _ in "12":
        with pytest.raises(ValueError, match=told):
            model(**batch())
    model.peft_config["default"].blc_weight = 0.0
    model(**without(batch(), "task_types")).loss.backward()


@pytest.mark.parametrize("call", [{"num_items_in_batch": 9}, {"labels": batch()["labels"]}])
def test_a_training_batch_without_task_types_is_told_once(call: dict[str, Any]) -> None:
    """By its labels, or by what a trainer passes that computes the loss itself."""
    model, inputs = adapted(), {**without(batch(), "task_types", "labels"), **call}
    with pytest.warns(UserWarning, match="'default' has blc_weight=0.1, but this training batch came without task_"):
        model(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(**inputs)


def test_nothing_is_told_where_no_constraint_is_due() -> None:
    inputs = without(batch(), "task_types")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapted(blc_weight=0.0)(**inputs)
        adapted().eval()(**inputs)
        with (model := adapted()).disable_adapter():
            model(**inputs)
        with torch.no_grad():
            adapted()(**inputs)
        adapted()(**without(inputs, "labels"))
        adapted().generate(input_ids=inputs["input_ids"], max_new_tokens=2)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused() -> None:
    model = adapted()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(RuntimeError, match=r"set gradient_checkpointing_kwargs=\{'use_reentrant': False\}"):
        model(**batch())


def test_replicas_of_data_parallel_are_refused() -> None:
    base = llama()
    model = adapted(base)
    base._is_replica = True  # as nn.DataParallel marks the copies that it runs in threads
    with pytest.raises(RuntimeError, match=r"nn\.DataParallel splits a batch among threads"):
        model(**batch())
