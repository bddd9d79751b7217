"""The distance: what a loop over samples and tokens gives, and what greedy decoding gives; logits a few at a time."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraMoeConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM

from loramoe.export import distance
from loramoe.export.distance import answer_scores, relative_errors
from loramoe.export.lora import adapter_layers, as_plain_lora, mean_gates, plain_lora
from loramoe.utils import UsageError

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.fixture
def without_gradients():
    with torch.no_grad():
        yield


def lora_of(model, batches, rank=None):
    return plain_lora(model, mean_gates(model, batches)[0], rank)


def loop(model, factors, samples):
    """For each answer token the sample, its type, the token, and the probabilities of the three models; float64."""
    rows = []
    for number, sample in enumerate(samples):
        ids = torch.tensor([sample["input_ids"]])
        p = {"adapter": model(ids).logits[0].double().softmax(-1)}
        with as_plain_lora(model, factors):
            p["lora"] = model(ids).logits[0].double().softmax(-1)
        with model.disable_adapter():
            p["base"] = model(ids).logits[0].double().softmax(-1)
        for place in range(1, len(sample["input_ids"])):
            if sample["labels"][place] != -100:
                at = {name: p[name][place - 1] for name in p}
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


def gemma2(perturb):
    """A model that caps its logits."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64, "head_dim": 16}
    config = Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=2, final_logit_softcapping=0.1)
    torch.manual_seed(0)
    return perturb(get_peft_model(Gemma2ForCausalLM(config).eval(), LoraMoeConfig(r=2, lora_nums=3))).eval()


@pytest.mark.parametrize(("capped", "size", "at_once"), [(False, 5, 7), (True, 8, 256)])
def test_the_numbers_of_a_loop_over_tokens(adapted, perturb, samples, batches, monkeypatch, capped, size, at_once):
    model = gemma2(perturb) if capped else adapted()
    factors = lora_of(model, batches(), rank=4)
    monkeypatch.setattr(distance, "TOKENS_AT_ONCE", at_once)
    groups = answer_scores(model, factors, batches(size))
    rows = loop(model, factors, samples)
    chosen = {"answers": rows} | {f"answers of type {kind}": [r for r in rows if r[1] == kind] for kind in (0, 1)}
    assert list(groups) == list(chosen)
    for name, part in chosen.items():
        assert groups[name]["tokens"] == len(part)
        assert groups[name]["samples"] == len({number for number, *_ in part})
        for each in ("base", "adapter", "lora"):
            assert groups[name][each] == pytest.approx(scores(part, each), rel=1e-4, abs=1e-6)


def test_the_relative_error_of_a_layer(adapted, samples, batches):
    model = adapted()
    factors, layers = lora_of(model, batches(), rank=2), adapter_layers(model)
    squares = {key: [0.0, 0.0] for key in layers}

    def see(layer, args, output, key):
        A, B = factors[key]
        exact = output - layer.base_layer(args[0])
        squares[key][0] += (args[0] @ A.T @ B.T - exact).square().sum().item()
        squares[key][1] += exact.square().sum().item()

    hooks = [layer.register_forward_hook(lambda *call, key=key: see(*call, key=key)) for key, layer in layers.items()]
    for sample in samples:
        model(torch.tensor([sample["input_ids"]]))
    for hook in hooks:
        hook.remove()
    expected = {key: math.sqrt(error / exact) for key, (error, exact) in squares.items()}
    assert relative_errors(model, factors, batches()) == pytest.approx(expected, rel=1e-4)


def test_an_answer_is_accurate_if_greedy_decoding_gives_it(adapted):
    model = adapted()
    right, wrong = [], []
    for n in range(2):
        prompt = torch.arange(3, 8 + n)[None] + n
        answer = model.generate(input_ids=prompt, max_new_tokens=3, do_sample=False)[:, -3:]
        for batches, last in ((right, answer[0, -1]), (wrong, (answer[0, -1] + 1) % 64)):
            ids = torch.cat([prompt, answer], dim=1)
            ids[0, -1] = last
            labels = torch.cat([torch.full_like(prompt, -100), ids[:, -3:]], dim=1)
            batches.append({"input_ids": ids, "labels": labels})
    found = answer_scores(model, lora_of(model, right), [*right, *wrong])
    assert list(found) == ["answers"]
    assert (found["answers"]["samples"], found["answers"]["adapter"]["accuracy"]) == (4, 0.5)


def test_constant_gates_have_no_distance_and_b_of_zero_no_error(adapted, batches):
    model = adapted()
    for layer in adapter_layers(model).values():
        layer.weights("default")[0].zero_()
    factors = lora_of(model, batches())
    found = answer_scores(model, factors, batches())["answers"]
    assert found["lora"]["kl"] < 1e-6
    assert found["base"]["kl"] > 1e-3
    assert max(relative_errors(model, factors, batches()).values()) < 1e-5
    for layer in adapter_layers(model).values():
        layer.weights("default")[2].zero_()
    assert set(relative_errors(model, lora_of(model, batches()), batches()).values()) == {0.0}


def test_samples_without_answers_and_damaged_models(adapted, batches):
    model = adapted()
    factors = lora_of(model, batches())
    empty = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in batches()]
    for none in (empty, []):
        with pytest.raises(UsageError, match="no answer"):
            answer_scores(model, factors, none)
    model.get_base_model().lm_head.weight[0, 0] = torch.nan
    with pytest.raises(UsageError, match="not finite"):
        answer_scores(model, factors, batches())
