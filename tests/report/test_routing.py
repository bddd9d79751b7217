"""The sums of one pass are those of a loop over rows, one at a time and token by token, however rows are batched.

In float64, so that only mistakes can make a difference.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from loramoe.data import SftCollator
from loramoe.report.routing import Routing, RoutingMeter, observe
from loramoe.tuner.layer import LoraMoeLayer

TYPES = (0, 1, 5)  # more than two, and one that no expert has


def make_rows(count: int = 13, seed: int = 3) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        ids = draw.choices(range(3, 30), k=draw.randrange(2, 11))
        rows.append({"input_ids": ids, "labels": ids, "task_types": TYPES[index % 3]})
    return rows


def batches(rows: Sequence[Any], size: int, **options: Any) -> list[dict[str, Tensor]]:
    collate = SftCollator(0, **options)
    return [collate(rows[begin : begin + size]) for begin in range(0, len(rows), size)]


def naive(model: Any, rows: Sequence[Any]) -> dict[str, Any]:
    """Every sum by its definition, from what goes into each adapted linear; no batch, no padding, no gates of ours."""
    inputs: dict[str, Tensor] = {}
    layers = {n: m for n, m in model.get_base_model().named_modules() if isinstance(m, LoraMoeLayer)}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
        for name, layer in layers.items()
    ]
    sums: dict[str, Any] = {name: defaultdict(float) for name in ("Q", "entropy", "tokens", "token", "count")}
    for row in rows:
        with torch.no_grad():
            model(input_ids=torch.tensor([row["input_ids"]]))
        for position, id in enumerate(row["input_ids"]):
            sums["tokens"][row["task_types"]] += 1
            sums["count"][id] += 1
            for linear, (name, layer) in enumerate(layers.items()):
                router = layer.weights("default")[0]
                gate_E = (inputs[name][0, position] @ router.T).softmax(-1).tolist()
                sums["entropy"][row["task_types"], linear] -= sum(gate * math.log(gate) for gate in gate_E if gate > 0)
                for expert, gate in enumerate(gate_E):
                    sums["Q"][row["task_types"], linear, expert] += gate
                    sums["token"][linear // 3, id, expert] += gate / 3  # 3 linears a layer, and 2 layers: 2 bands
    for hook in hooks:
        hook.remove()
    return sums


def assert_same(one: Routing, other: Routing) -> None:
    for field in dataclasses.fields(Routing):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, Tensor):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)
        else:
            assert left == right


def test_the_sums_are_those_of_a_naive_loop(adapted):
    model, rows = adapted().double(), make_rows()
    expected = naive(model, rows)
    got = observe(model, batches(rows, 4), progress=False)
    assert (got.rows, got.task_types, got.expert_types) == (13, TYPES, (1, 0, 0))
    assert [band.label for band in got.bands] == ["0", "1"]
    assert got.tokens_T.tolist() == [expected["tokens"][t] for t in TYPES]
    for t, task_type in enumerate(TYPES):
        for linear in range(6):
            assert got.entropy_TL[t, linear].item() == pytest.approx(expected["entropy"][task_type, linear], rel=1e-9)
            for expert in range(3):
                wanted = expected["Q"][task_type, linear, expert]
                assert got.Q_TLE[t, linear, expert].item() == pytest.approx(wanted, rel=1e-9)
    for id in range(64):
        assert got.count_V[id] == expected["count"][id]
        for band in range(2):
            for expert in range(3):
                wanted = expected["token"][band, id, expert]
                assert got.Q_KVE[band, id, expert].item() == pytest.approx(wanted, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("size", [1, 3, 13])
def test_the_batch_size_changes_nothing(adapted, size: int):
    model, rows = adapted().double(), make_rows()
    assert_same(observe(model, batches(rows, size), progress=False), observe(model, batches(rows, 4), progress=False))


def test_padding_changes_nothing(adapted):
    model, rows = adapted().double(), make_rows()
    padded = observe(model, batches(rows, 4, pad_to_multiple_of=16), progress=False)
    assert_same(padded, observe(model, batches(rows, 4), progress=False))
    assert padded.count_V[0] == 0


def test_a_batch_without_a_mask_is_all_text(adapted):
    model = adapted().double()
    row = {"input_ids": [4, 5, 6], "labels": [4, 5, 6], "task_types": 1}
    (batch,) = batches([row, row], 2)
    del batch["attention_mask"]
    assert_same(observe(model, [batch], progress=False), observe(model, batches([row, row], 2), progress=False))


def test_memory_does_not_grow_with_the_rows(adapted):
    meter = RoutingMeter(["a", "b"], (1, 0), 10)
    sizes = set()
    for _ in range(5):
        gates = [torch.full((4, 2), 0.5)] * 2
        meter.add(gates, torch.tensor([1, 2, 3, 1]), torch.tensor([0, 0, 1, 1]), [0, 1])
        sizes.add(len(pickle.dumps(meter)))  # whatever it may keep
    assert len(sizes) == 1
    assert meter.result().rows == 10


def test_the_model_is_left_as_it_was(adapted):
    model = adapted().train()
    observe(model, batches(make_rows(), 4), progress=False)
    assert model.training
    experts = [layer.loramoe_experts["default"] for layer in model.modules() if isinstance(layer, LoraMoeLayer)]
    assert not any(each._forward_hooks for each in experts)
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_an_adapted_head_is_observed_too(adapted):
    model = adapted(target_modules=["lm_head", "down_proj"])
    got = observe(model, batches(make_rows(), 4), progress=False)
    assert got.linears == ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "lm_head")
    torch.testing.assert_close(got.Q_TLE.sum(dim=-1), got.tokens_T[:, None].double().expand(3, 3))


def test_of_two_adapters_the_active_one_is_observed(two):
    """Adapter `two` has 5 experts, and is on attention, too."""
    two.set_adapter("two")
    got = observe(two, batches(make_rows(), 4), progress=False)
    assert got.Q_TLE.shape == (3, 4, 5)
    assert {name.rpartition(".")[2] for name in got.linears} == {"q_proj", "up_proj"}


def test_other_models_and_adapters_are_refused(adapted, tiny_llama):
    with pytest.raises(ValueError, match="experts of a PeftModel can be observed; got LlamaForCausalLM"):
        observe(tiny_llama(), batches(make_rows(), 4))
    plain = get_peft_model(tiny_llama(), LoraConfig(target_modules=["up_proj"]))
    with pytest.raises(ValueError, match="adapter 'default' is of type LORA, which has no experts"):
        observe(plain, batches(make_rows(), 4))
    with pytest.raises(ValueError, match="lora_nums=1: its one expert gets every token"):
        observe(adapted(lora_nums=1, blc_weight=0), batches(make_rows(), 4))


def test_without_an_active_adapter_there_is_nothing_to_see(adapted):
    model = adapted()
    model.active_adapters.clear()
    with pytest.raises(ValueError, match=r"no adapter is active; the model has \['default'\]. Choose one with"):
        observe(model, batches(make_rows(), 4), progress=False)


def test_a_task_type_without_a_token_is_none(adapted):
    """Its means would be those of nothing."""
    (batch,) = batches(make_rows(), 13)
    batch["attention_mask"][batch["task_types"] == 5] = 0
    got = observe(adapted(), [batch], progress=False)
    assert got.task_types == (0, 1)
    assert got.tokens_T.min() > 0


def test_batches_that_lack_something_are_refused(adapted):
    (batch,) = batches(make_rows(), 13)
    del batch["task_types"]
    with pytest.raises(ValueError, match="must hold input_ids and task_types; got"):
        observe(adapted(), [batch], progress=False)
    with pytest.raises(ValueError, match="there is no token to report on: the rows are empty"):
        observe(adapted(), [], progress=False)
    (batch,) = batches(make_rows(), 13)
    batch["attention_mask"] = torch.zeros_like(batch["attention_mask"])
    with pytest.raises(ValueError, match="there is no token to report on"):
        observe(adapted(), [batch], progress=False)


def test_a_linear_that_sees_other_tokens_is_refused(adapted):
    model = adapted()
    down = model.get_submodule("base_model.model.model.layers.0.mlp")
    down.forward = lambda x: type(down).forward(down, x[:, :1]).expand_as(x)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.\w+ saw 13 tokens, the batch has \[13, 10\] = 130"):
        observe(model, batches(make_rows(), 13), progress=False)


def test_a_linear_that_sees_tokens_in_another_order_is_refused(adapted):
    model = adapted()
    down = model.get_submodule("base_model.model.model.layers.0.mlp")
    down.forward = lambda x: type(down).forward(down, x.transpose(0, 1)).transpose(0, 1)
    with pytest.raises(ValueError, match=r"saw 130 tokens, the batch has \[13, 10\] = 130, not \[10, 13\]"):
        observe(model, batches(make_rows(), 13), progress=False)


def test_a_forward_that_failed_leaves_nothing_behind(adapted):
    model = adapted()
    (batch,) = batches(make_rows(), 13)
    expected = observe(model, [batch], progress=False)
    with pytest.raises(ValueError, match="Expected input batch_size"):
        model(**{**batch, "labels": batch["labels"][:1]})
    assert torch.equal(observe(model, [batch], progress=False).Q_TLE, expected.Q_TLE)


def test_gates_that_are_not_finite_are_refused(adapted):
    model = adapted()
    next(m for m in model.modules() if isinstance(m, LoraMoeLayer)).weights("default")[0].data.fill_(math.inf)
    with pytest.raises(ValueError, match="gates that are not finite: it is damaged"):
        observe(model, batches(make_rows(), 4), progress=False)
