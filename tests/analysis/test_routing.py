"""The collector's sums are those of single samples, however samples are batched; what is logged of them."""

from __future__ import annotations

import dataclasses
import math
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from loramoe import last_balance
from loramoe.analysis import RoutingCollector, RoutingStats, collect_routing, log_values
from loramoe.analysis.routing import PARTS_PREFIX, split_parts
from loramoe.data import SftCollator
from loramoe.tuner.layer import LoraMoeLayer

EXPERTS = {"lora_nums": 4, "expert_types": [2, 0, 0, 5]}
TYPES = (0, 2, 5)


def make_samples(count: int = 13) -> list[dict[str, Any]]:
    draw = random.Random(3)
    ids = [draw.choices(range(3, 30), k=draw.randrange(2, 11)) for _ in range(count)]
    return [{"input_ids": each, "labels": each, "task_types": TYPES[n % 3]} for n, each in enumerate(ids)]


def batches(size: int, **options: Any) -> list[dict[str, Any]]:
    samples = make_samples()
    return [SftCollator(0, **options)(samples[begin : begin + size]) for begin in range(0, len(samples), size)]


@torch.no_grad()
def naive(model: Any) -> RoutingStats:
    """Every mean by its definition, from the input of each router, sample by sample."""
    inputs: dict[str, torch.Tensor] = {}
    layers = {name: m for name, m in model.get_base_model().named_modules() if isinstance(m, LoraMoeLayer)}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0][0]))
    gates, entropy, tokens = np.zeros((3, len(layers), 4)), np.zeros((3, len(layers))), np.zeros(3)
    for sample in make_samples():
        t = TYPES.index(sample["task_types"])
        tokens[t] += len(sample["input_ids"])
        model(input_ids=torch.tensor([sample["input_ids"]]))
        for n, (name, layer) in enumerate(layers.items()):
            gate_SE = (inputs[name] @ layer.weights("default")[0].T).softmax(-1).numpy()
            gates[t, n] += gate_SE.sum(0)
            entropy[t, n] -= (gate_SE * np.log(gate_SE)).sum() / math.log(4)
    means = gates / tokens[:, None, None], entropy / tokens[:, None]
    unknown = np.full(len(layers), math.nan)  # the constraint: a mean over batches
    return RoutingStats(*means, unknown, tokens, np.array([5.0, 4, 4]), TYPES, (2, 0, 0, 5), tuple(layers))


def assert_same(one: RoutingStats, other: RoutingStats) -> None:
    for name in ("gate_TLE", "entropy_TL", "tokens_T", "samples_T"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5)
    for name in ("task_types", "expert_types", "layers"):
        assert getattr(one, name) == getattr(other, name)


@pytest.mark.parametrize("importance", ["mean", "sum"])
@pytest.mark.parametrize(("size", "options"), [(4, {}), (13, {"pad_to_multiple_of": 16})])
def test_statistics_equal_those_of_single_samples(adapted, importance: str, size: int, options: dict[str, int]):
    model = adapted(blc_importance=importance, **EXPERTS).double().train()
    stats = collect_routing(model, batches(size, **options))
    assert model.training
    assert_same(stats, naive(model.eval()))


def test_training_steps_have_the_constraint_and_no_entropy(adapted):
    model, collector, constraints = adapted(**EXPERTS).train(), RoutingCollector(), []
    for batch in batches(4):
        model(**batch)
        collector.add(last_balance(model))
        constraints.append(last_balance(model).constraint_L.detach().numpy())
    stats = collector.result()
    np.testing.assert_allclose(stats.constraint_L, np.mean(constraints, axis=0), rtol=1e-5)
    assert stats.entropy_TL is None


def test_merged_collectors_equal_one_and_do_not_grow(adapted):
    model, alone, parts = adapted(**EXPERTS), RoutingCollector(), [RoutingCollector() for _ in range(3)]
    sizes = set()
    with torch.no_grad():
        for n, batch in enumerate(batches(4)):
            model(**batch)
            alone.add(last_balance(model))
            parts[n % 2].add(last_balance(model))
            sizes.add(len(pickle.dumps(alone)))
    assert len(sizes) == 1
    merged = RoutingCollector.merge(pickle.loads(pickle.dumps(parts)))
    assert_same(merged.result(), alone.result())
    assert RoutingCollector.merge([]).result() is None


def test_a_type_without_a_token_is_left_out(adapted):
    (batch,) = batches(13)
    batch["attention_mask"][batch["task_types"] == 5] = 0
    stats = collect_routing(adapted(**EXPERTS), [batch])
    assert stats.task_types == (0, 2)
    assert stats.share_TG.shape == (2, 3)


def test_an_adapted_head_is_observed_too(adapted):
    stats = collect_routing(adapted(target_modules=["lm_head"], **EXPERTS), batches(4))
    assert stats.layers == ("lm_head",)
    assert stats.tokens_T.sum() == sum(len(sample["input_ids"]) for sample in make_samples())


def test_other_adapters_and_no_token_are_refused(adapted, tiny_llama):
    plain = get_peft_model(tiny_llama(), LoraConfig(target_modules=["up_proj"]))
    for model in (plain, adapted(lora_nums=1, blc_weight=0)):
        with pytest.raises(ValueError, match="several experts"):
            collect_routing(model, batches(4))
    with pytest.raises(ValueError, match="no token"):
        collect_routing(adapted(), [])
    with pytest.raises(ValueError, match="task_types"):
        collect_routing(adapted(), [{"input_ids": torch.ones(1, 2)}])


# --- The log ---------------------------------------------------------------------------------------------------------


def test_logged_values_by_known_answer(make_stats):
    stats = make_stats(own=1.0)
    gate_TLE = stats.gate_TLE.copy()
    gate_TLE[:, 1] = 0.25  # one linear layer of the first decoder layer, `down_proj`, is even
    values = log_values(dataclasses.replace(stats, gate_TLE=gate_TLE))
    uneven = (250**2 * 4 / 3) ** 0.5 / 750  # loads 1000, 1000, 500, 500: mean 750, unbiased variance 250² · 4 / 3
    expected = {
        "blc": 21,
        "cov": uneven * 5 / 6,
        "entropy": 0.9,
        "share/type0/group0": 11 / 12,
        "share/type0/group1": 1 / 12,
        "routing/blc/early": 1 + 2,
        "routing/blc/late": 5 + 6,
        "routing/cov/up_proj": uneven,
        "routing/cov/down_proj": uneven * 2 / 3,
        "routing/share/type1/group1/early": 0.75,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert {name for name in values if not name.startswith(PARTS_PREFIX)} == {
        *("blc", "cov", "entropy"),
        *(f"share/type{t}/group{g}" for t in (0, 1) for g in (0, 1)),
    }


@pytest.mark.parametrize(
    ("layers", "sizes"),
    [
        (32, {"early": 22, "middle": 22, "late": 20, "up_proj": 32, "down_proj": 32}),
        (2, {"up_proj": 2, "down_proj": 2}),
    ],
)
def test_thirds_hold_whole_decoder_layers(make_stats, layers: int, sizes: dict[str, int]):
    parts = split_parts(make_stats(layers=layers))
    assert {name: len(positions) for name, positions in parts.items()} == sizes
    assert parts["up_proj"] == list(range(0, 2 * layers, 2))


def test_a_layer_outside_of_decoder_layers_stands_alone(make_stats):
    stats = dataclasses.replace(make_stats(), layers=("layers.7.up_proj", "layers.7.up_proj", "lm_head"))
    np.testing.assert_allclose(stats.by_decoder_layer(np.array([[1.0, 3.0, 5.0]])), [[2, 5]])
