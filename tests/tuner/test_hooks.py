"""The constraint in the model's forward: its value, its share of a step, who passes what, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from peft import inject_adapter_in_model
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import LlamaModel

import loramoe
from loramoe import LoraMoeConfig
from loramoe.balance import coefficient, localized_balance, rows_as_samples
from loramoe.tuner.layer import LoraMoeLayer
from tests.constrained import S, adapted, batch, llama, without


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
        total = total + localized_balance(rows_as_samples(inputs["attention_mask"]).importance(gates), I_ME)
    return total


def router_gradient(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for name, p in model.named_parameters() if "router" in name])


@pytest.mark.parametrize("blc_target", ["paper", "match"])
def test_loss_contains_the_constraint_of_every_layer(blc_target: str) -> None:
    model, inputs = adapted(blc_weight=0.3, blc_alpha=0.4, blc_target=blc_target), batch()
    config = model.peft_config["default"]
    expected = lm_loss(model, inputs) + 0.3 * constraint_by_hand(model, inputs, config)
    torch.testing.assert_close(model(**inputs).loss, expected)


def test_evaluation_loss_is_the_language_models_alone() -> None:
    model, inputs = adapted(blc_weight=1.0).eval(), batch()
    assert torch.equal(model(**inputs).loss, lm_loss(model, inputs))
    assert loramoe.last_balance(model).constraint > 0


def test_weight_zero_adds_nothing() -> None:
    model, inputs = adapted(blc_weight=0.0), batch()
    assert torch.equal(model(**inputs).loss, lm_loss(model, inputs))


def test_a_changed_weight_takes_effect_at_once() -> None:
    model, inputs = adapted(blc_weight=0.1), batch()
    model.peft_config["default"].blc_weight = 0.0
    assert torch.equal(model(**inputs).loss, lm_loss(model, inputs))


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(side: str) -> None:
    model, inputs = adapted(), batch(lengths=(5, 5, 5))
    short = {name: t[:, :5] if t.dim() == 2 else t for name, t in inputs.items()}
    loss, balance = model(**short).loss, loramoe.last_balance(model)
    if side == "left":
        inputs = {name: t.roll(3, dims=1) if t.dim() == 2 else t for name, t in inputs.items()}
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    torch.testing.assert_close(model(**inputs).loss, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loramoe.last_balance(model).constraint_L, balance.constraint_L, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loramoe.last_balance(model).gate_TLE, balance.gate_TLE, rtol=1e-5, atol=1e-6)


def test_without_a_mask_every_token_counts() -> None:
    model, inputs = adapted(), batch(lengths=(8, 8, 8))
    torch.testing.assert_close(model(**without(inputs, "attention_mask")).loss, model(**inputs).loss)


def test_positional_arguments() -> None:
    base = llama()
    model, inputs = adapted(base), batch()
    expected = model(**inputs).loss
    loss = base(
        inputs["input_ids"], inputs["attention_mask"], labels=inputs["labels"], task_types=inputs["task_types"]
    ).loss
    assert torch.equal(loss, expected)


def test_inputs_embeds_in_place_of_input_ids() -> None:
    model, inputs = adapted(), batch()
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    torch.testing.assert_close(model(inputs_embeds=embeds, **without(inputs, "input_ids")).loss, model(**inputs).loss)


def test_an_injected_adapter_has_its_constraint() -> None:
    base, config = llama(), LoraMoeConfig(lora_nums=4, lora_dropout=0.0, init_lora_weights=False)
    torch.manual_seed(1)
    injected = inject_adapter_in_model(config, base).train()
    assert torch.equal(injected(**batch()).loss, adapted()(**batch()).loss)


def test_one_sample_and_one_type() -> None:
    model, inputs = adapted(), batch(lengths=(6,))
    assert torch.isfinite(model(**inputs).loss)
    assert loramoe.last_balance(model).task_types == (0,)


def test_one_expert_has_no_constraint() -> None:
    model, inputs = adapted(lora_nums=1, blc_weight=0.0), batch()
    assert torch.equal(model(**inputs).loss, lm_loss(model, inputs))
    assert loramoe.last_balance(model).constraint == 0


def test_three_types_of_experts() -> None:
    model, inputs = adapted(lora_nums=5, expert_types=[2, 2, 1, 0, 0]), batch()
    inputs["task_types"] = torch.tensor([2, 0, 1])
    assert torch.isfinite(model(**inputs).loss)
    assert loramoe.last_balance(model).task_types == (0, 1, 2)


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


def test_the_mean_gate_is_the_mean_over_the_real_tokens_of_a_type() -> None:
    model, inputs = adapted(lora_nums=2, target_modules=["layers.0.mlp.gate_proj"]), batch()
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.gate_proj")
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda layer, args, out: seen.append(args[0]))
    model(**inputs)
    hook.remove()
    gates = (seen[0] @ layer.weights("default")[0].T).softmax(-1)
    expected = torch.cat([gates[0, :8], gates[2, :3]]).mean(0)
    torch.testing.assert_close(loramoe.last_balance(model).gate_TLE[0, 0], expected)


@pytest.mark.parametrize(("padded", "types"), [([1], (0,)), ([0, 2], (1,)), ([0], (0, 1)), ([0, 1, 2], ())])
def test_a_type_of_padding_alone_is_not_among_what_was_seen(padded: list[int], types: tuple[int, ...]) -> None:
    model, inputs = adapted(), batch()
    inputs["attention_mask"][padded] = 0
    model(**inputs)
    balance = loramoe.last_balance(model)
    assert balance.task_types == types
    assert balance.gate_TLE.shape == (len(types), 6, 4)
    assert (balance.tokens_T > 0).all()
    assert balance.gate_TLE.isfinite().all()
    assert balance.constraint.isfinite()


def test_a_forward_that_failed_leaves_the_next_one_right() -> None:
    model, inputs = adapted(), batch()
    expected = model(**inputs).loss
    with pytest.raises(ValueError, match="Expected input batch_size"):
        model(**{**inputs, "labels": inputs["labels"][:1]})
    assert torch.equal(model(**inputs).loss, expected)


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


def test_accumulated_gradients_do_not_grow_with_the_steps() -> None:
    model, inputs = adapted(blc_weight=5.0), batch()
    model(**inputs).loss.backward()
    once = router_gradient(model)
    model.zero_grad()
    tokens = (inputs["labels"][:, 1:] != -100).sum()
    for _ in range(4):
        model(**inputs, num_items_in_batch=4 * tokens).loss.backward()
    torch.testing.assert_close(router_gradient(model), once)


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


# --- Models that leave the loss to somebody else ---------------------------------------------------------------------


def test_a_model_without_a_head_hands_the_constraint_over() -> None:
    config = LoraMoeConfig(lora_nums=4, lora_dropout=0.0, init_lora_weights=False, blc_weight=0.5)
    model = inject_adapter_in_model(config, LlamaModel(llama().config)).train()
    outputs = model(**without(batch(), "labels"))
    torch.testing.assert_close(outputs.balance_loss.detach(), 0.5 * loramoe.last_balance(model).constraint)
    assert "balance_loss" not in model.eval()(**without(batch(), "labels"))


# --- Training ---------------------------------------------------------------------------------------------------------


def mixed_batch(step: int) -> dict[str, Tensor]:
    """Short samples of type 1 and long ones of type 0, of words of their own."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.stack([torch.randint(1 + 20 * (m % 2), 20 + 20 * (m % 2), (S,), generator=generator) for m in range(8)])
    mask = (torch.arange(S) < torch.tensor([8, 3] * 4).unsqueeze(-1)).long()
    types = torch.tensor([0, 1] * 4)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100), "task_types": types}


def train_40_steps(**config: Any) -> tuple[list[float], Tensor]:
    """The constraint at each step, and at the end the share of each type that its own group of experts has."""
    model = adapted(r=2, blc_alpha=0.5, init_lora_weights=True, **config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    constraints = []
    for step in range(40):
        model(**mixed_batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        constraints.append(loramoe.last_balance(model).constraint.item())
    gate_TE = loramoe.last_balance(model).gate_TLE.mean(1)
    return constraints, torch.stack([gate_TE[0, 2:].sum(), gate_TE[1, :2].sum()])


def test_training_with_the_constraint_separates_the_types() -> None:
    """The closed form is (1 + a) / 2 = 0.75 for either type, although one has samples of 8 tokens and one of 3."""
    constraints, own_T = train_40_steps(blc_weight=1.0)
    assert sum(constraints[-5:]) < 0.3 * sum(constraints[:5])
    assert ((own_T > 0.68) & (own_T < 0.78)).all()


def test_training_without_the_constraint_does_not() -> None:
    constraints, own_T = train_40_steps(blc_weight=0.0)
    assert sum(constraints[-5:]) > sum(constraints[:5])
    assert (own_T < 0.6).all()


def test_training_by_the_sum_leaves_the_short_samples_behind() -> None:
    _, own_T = train_40_steps(blc_weight=1.0, blc_importance="sum")
    assert own_T[0] > 0.75
    assert own_T[1] < 0.6


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3])
def test_a_compiled_training_step_is_one_graph(layers: int) -> None:
    model, inputs = adapted(llama(num_hidden_layers=layers), blc_weight=0.5), batch()
    expected = model(**inputs).loss
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)(**inputs)
    torch.testing.assert_close(compiled.loss, expected)
    assert counter.frame_count == 1
    assert loramoe.last_balance(model).task_types == (0, 1)


def test_a_compiled_model_refuses_an_unknown_type() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(adapted(), backend="eager")
    with pytest.raises(RuntimeError, match="task_types do not fit the samples or the experts"):
        compiled(**{**batch(), "task_types": torch.tensor([0, 3, 1])})
