"""The distance: what a loop over samples and tokens gives, and what greedy decoding gives; logits a few at a time."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from loramoe.export import distance
from loramoe.export.adapter import ExportError, get_active_adapter, mean_gates
from loramoe.export.distance import measure_distance
from loramoe.export.lora import as_plain_lora, plain_lora
from tests.helpers import layers_of


def lora_of(adapter, batches, rank=None):
    return plain_lora(adapter, mean_gates(adapter, batches, progress=False)[0], rank)


def loop(adapter, factors, samples):
    """For each answer token the sample, its type, the token, and the probabilities of the three models; float64."""
    rows = []
    for number, sample in enumerate(samples):
        ids = torch.tensor([sample["input_ids"]])
        p = {"adapter": adapter.model(ids).logits[0].double().softmax(-1)}
        with as_plain_lora(adapter, factors):
            p["lora"] = adapter.model(ids).logits[0].double().softmax(-1)
        with adapter.model.disable_adapter():
            p["base"] = adapter.model(ids).logits[0].double().softmax(-1)
        for place in range(1, len(sample["input_ids"])):
            if sample["labels"][place] != -100:
                at = {model: p[model][place - 1] for model in p}
                rows.append((number, sample["task_types"], sample["input_ids"][place], at))
    return rows


def scores(rows, model):
    kl = sorted((p["adapter"] * (p["adapter"] / p[model]).log()).sum().item() for *_, p in rows)
    right = {number: True for number, *_ in rows}
    for number, _, token, p in rows:
        right[number] &= p[model].argmax().item() == token
    return {
        "kl": sum(kl) / len(kl),
        "kl_p95": torch.tensor(kl, dtype=torch.float64).quantile(0.95).item(),
        "agreement": sum(p["adapter"].argmax() == p[model].argmax() for *_, p in rows).item() / len(rows),
        "accuracy": sum(right.values()) / len(right),
        "perplexity": math.exp(sum(-p[model][token].log().item() for _, _, token, p in rows) / len(rows)),
    }


@torch.no_grad()
@pytest.mark.parametrize(("size", "at_once"), [(1, 256), (5, 7), (12, 256)])
def test_the_numbers_of_a_loop_over_tokens(adapted, samples, batches, monkeypatch, size, at_once):
    adapter = get_active_adapter(adapted())
    factors = lora_of(adapter, batches(), rank=4)
    monkeypatch.setattr(distance, "TOKENS_AT_ONCE", at_once)
    groups = measure_distance(adapter, factors, batches(size), progress=False)["groups"]
    rows = loop(adapter, factors, samples)
    chosen = {"answers": rows} | {f"answers of type {kind}": [r for r in rows if r[1] == kind] for kind in (0, 1)}
    assert list(groups) == list(chosen)
    for name, part in chosen.items():
        assert groups[name]["tokens"] == len(part)
        assert groups[name]["samples"] == len({number for number, *_ in part})
        for model in ("base", "adapter", "lora"):
            assert groups[name][model] == pytest.approx(scores(part, model), rel=1e-4, abs=1e-6)


@torch.no_grad()
def test_the_relative_error_of_a_layer(adapted, samples, batches):
    adapter = get_active_adapter(adapted())
    factors = lora_of(adapter, batches(), rank=2)
    squares = {key: [0.0, 0.0] for key in adapter.layers}

    def see(layer, args, output, key):
        A, B = factors[key]
        exact = output - layer.base_layer(args[0])
        squares[key][0] += (args[0] @ A.T @ B.T - exact).square().sum().item()
        squares[key][1] += exact.square().sum().item()

    hooks = [
        layer.register_forward_hook(lambda *call, key=key: see(*call, key=key)) for key, layer in adapter.layers.items()
    ]
    for sample in samples:
        adapter.model(torch.tensor([sample["input_ids"]]))
    for hook in hooks:
        hook.remove()
    expected = {key: math.sqrt(error / exact) for key, (error, exact) in squares.items()}
    found = measure_distance(adapter, factors, batches(), progress=False)["relative_error"]
    assert found == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_an_answer_is_accurate_if_greedy_decoding_gives_it(adapted):
    adapter = get_active_adapter(adapted())
    right, wrong = [], []
    for n in range(4):
        prompt = torch.arange(3, 8 + n)[None] + n
        answer = adapter.model.generate(input_ids=prompt, max_new_tokens=3, do_sample=False)[:, -3:]
        for batches, last in ((right, answer[0, -1]), (wrong, (answer[0, -1] + 1) % 64)):
            ids = torch.cat([prompt, answer], dim=1)
            ids[0, -1] = last
            labels = torch.cat([torch.full_like(prompt, -100), ids[:, -3:]], dim=1)
            batches.append({"input_ids": ids, "labels": labels})
    found = measure_distance(adapter, lora_of(adapter, right), [*right, *wrong], progress=False)["groups"]
    assert list(found) == ["answers"]
    assert (found["answers"]["samples"], found["answers"]["adapter"]["accuracy"]) == (8, 0.5)


@torch.no_grad()
def test_logits_are_those_of_the_model_which_may_cap_them(perturb, samples, batches):
    from peft import LoraMoeConfig, get_peft_model

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64, "head_dim": 16}
    config = Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=2, final_logit_softcapping=0.1)
    torch.manual_seed(0)
    model = perturb(get_peft_model(Gemma2ForCausalLM(config).eval(), LoraMoeConfig(r=2, lora_nums=3))).eval()
    adapter = get_active_adapter(model)
    factors = lora_of(adapter, batches())
    found = measure_distance(adapter, factors, batches(), progress=False)["groups"]["answers"]
    expected = scores(loop(adapter, factors, samples), "adapter")
    assert found["adapter"]["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-4)


@torch.no_grad()
def test_constant_gates_have_no_distance_and_b_of_zero_no_error(adapted, batches):
    model = adapted()
    adapter = get_active_adapter(model)
    for layer in layers_of(model).values():
        layer.weights("default")[0].zero_()
    found = measure_distance(adapter, lora_of(adapter, batches()), batches(), progress=False)
    assert found["groups"]["answers"]["lora"]["kl"] < 1e-6
    assert found["groups"]["answers"]["base"]["kl"] > 1e-3
    assert max(found["relative_error"].values()) < 1e-5
    for layer in layers_of(model).values():
        layer.weights("default")[2].zero_()
    found = measure_distance(adapter, lora_of(adapter, batches()), batches(), progress=False)
    assert set(found["relative_error"].values()) == {0.0}


@torch.no_grad()
def test_samples_without_answers_and_damaged_models(adapted, batches):
    adapter = get_active_adapter(adapted())
    factors = lora_of(adapter, batches())
    empty = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in batches()]
    with pytest.raises(ExportError, match="no answer"):
        measure_distance(adapter, factors, empty, progress=False)
    adapter.model.get_base_model().lm_head.weight[0, 0] = torch.nan
    with pytest.raises(ExportError, match="not finite"):
        measure_distance(adapter, factors, batches(), progress=False)
