"""The distance: what a loop over rows and tokens says, and what greedy decoding would say."""

from __future__ import annotations

import math

import pytest
import torch

from loramoe.export import ExportError, as_plain_lora, mean_gates
from loramoe.export.distance import _compare_some, distance
from tests.helpers import layers_of, trainable


def means(model, batches):
    return {name: each.mean_E for name, each in mean_gates(model, batches, progress=False).items()}


def looped(model, rows, gates):
    """For each row and predicted token: probabilities of the three sides, and the token; float64."""
    seen = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        p = {"mixture": model(ids).logits[0].double().softmax(-1)}
        with as_plain_lora(model, gates):
            p["export"] = model(ids).logits[0].double().softmax(-1)
        with model.disable_adapter():
            p["base"] = model(ids).logits[0].double().softmax(-1)
        for place in range(1, len(row["input_ids"])):
            answers = row["labels"][place] != -100
            seen.append(({side: p[side][place - 1] for side in p}, row["input_ids"][place], answers, row["task_types"]))
    return seen


@torch.no_grad()
def test_it_is_what_a_loop_over_tokens_says(adapted, rows, batches):
    model = adapted()
    gates = means(model, batches())
    found = distance(model, batches(), gates, progress=False)
    seen = looped(model, rows, gates)
    of_group = {
        "answers": [s for s in seen if s[2]],
        "answers of type 0": [s for s in seen if s[2] and s[3] == 0],
        "answers of type 1": [s for s in seen if s[2] and s[3] == 1],
        "all tokens": seen,
    }
    assert list(found.groups) == list(of_group)
    for name, tokens in of_group.items():
        group = found.groups[name]
        assert group.tokens == len(tokens)
        assert group.rows == (6 if "type" in name else 12)
        for side in ("base", "export"):
            kl = sorted((p["mixture"] * (p["mixture"] / p[side]).log()).sum().item() for p, *_ in tokens)
            agreement = sum(p["mixture"].argmax() == p[side].argmax() for p, *_ in tokens) / len(tokens)
            measured = group.divergence[side]
            assert measured.mean == pytest.approx(sum(kl) / len(kl), rel=1e-4, abs=1e-6)
            assert measured.p95 == pytest.approx(kl[math.ceil(0.95 * len(kl)) - 1], rel=1e-4, abs=1e-6)
            assert measured.max == pytest.approx(kl[-1], rel=1e-4, abs=1e-6)
            assert measured.agreement == pytest.approx(agreement.item())
        for side, measured in group.answers.items():
            loss = sum(-p[side][token].log().item() for p, token, *_ in tokens) / len(tokens)
            right = sum((p[side].argmax() == token).item() for p, token, *_ in tokens) / len(tokens)
            assert measured.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
            assert measured.token_accuracy == pytest.approx(right)
    answers = found.groups["answers"].divergence
    assert found.lost == answers["export"].mean / answers["base"].mean


@torch.no_grad()
def test_batches_and_chunks_change_nothing(adapted, rows, batches, monkeypatch):
    model = adapted()
    gates = means(model, batches())
    expected = distance(model, batches(1), gates, progress=False)
    monkeypatch.setattr("loramoe.export.distance.TOKENS_AT_ONCE", 7)
    found = distance(model, batches(12), gates, progress=False)
    for name, group in expected.groups.items():
        assert (found.groups[name].tokens, found.groups[name].rows) == (group.tokens, group.rows)
        for side, divergence in group.divergence.items():
            assert vars(found.groups[name].divergence[side]) == pytest.approx(vars(divergence), rel=1e-3, abs=1e-5)
        for side, answers in group.answers.items():
            assert vars(found.groups[name].answers[side]) == pytest.approx(vars(answers), rel=1e-4)
    assert found.relative_error == pytest.approx(expected.relative_error, rel=1e-4)


@torch.no_grad()
def test_an_answer_is_accurate_where_greedy_decoding_says_it(adapted):
    model = adapted()
    said, unsaid = [], []
    for n in range(4):
        prompt = torch.arange(3, 8 + n)[None] + n
        ids = torch.cat([prompt, model.generate(input_ids=prompt, max_new_tokens=3, do_sample=False)[:, -3:]], dim=1)
        labels = ids.clone()
        labels[:, : prompt.shape[1]] = -100
        said.append({"input_ids": ids, "labels": labels})
        wrong = ids.clone()
        wrong[0, -1] = (ids[0, -1] + 1) % 64
        unsaid.append({"input_ids": wrong, "labels": torch.where(labels == -100, labels, wrong)})
    gates = means(model, said)
    assert distance(model, said, gates, progress=False).groups["answers"].answers["mixture"].accuracy == 1
    half = distance(model, [*said, *unsaid], gates, progress=False).groups["answers"]
    assert (half.rows, half.answers["mixture"].accuracy) == (8, 0.5)
    assert half.answers["mixture"].token_accuracy == pytest.approx(5 / 6)


def test_constant_gates_have_no_distance(adapted, batches):
    model = adapted(lora_nums=4)
    for layer in layers_of(model).values():
        layer.weights("default")[0].data.zero_()
    found = distance(model, batches(), means(model, batches()), progress=False)
    for group in found.groups.values():
        assert group.divergence["export"].max < 1e-6
        assert group.divergence["export"].agreement == 1
        assert group.divergence["base"].mean > 1e-3
    assert set(found.relative_error.values()) == {0.0}


def test_an_adapter_that_adds_nothing(adapted, batches):
    model = adapted()
    for layer in layers_of(model).values():
        layer.weights("default")[2].data.zero_()
    found = distance(model, batches(), means(model, batches()), progress=False)
    assert found.lost is None
    assert set(found.relative_error.values()) == {0.0}


def test_rows_without_task_types(adapted, batches):
    untyped = [{name: tensor for name, tensor in batch.items() if name != "task_types"} for batch in batches()]
    model = adapted()
    assert list(distance(model, untyped, means(model, untyped), progress=False).groups) == ["answers", "all tokens"]


def test_the_model_is_left_as_it_was(adapted, batches):
    model = adapted().train()
    before = trainable(model)
    hooks = [len(layer._forward_hooks) for layer in layers_of(model).values()]
    distance(model, batches(), means(model, batches()), progress=False)
    assert model.training
    assert trainable(model) == before
    assert [len(layer._forward_hooks) for layer in layers_of(model).values()] == hooks


@pytest.mark.parametrize("side", ["mixture", "export", "base"])
def test_logits_that_are_not_finite(adapted, batches, monkeypatch, side):
    """Of the mixture, and with it of the others, where the head is broken; else of the one side alone."""
    model = adapted()
    gates = means(model, batches())
    if side == "mixture":
        model.get_base_model().lm_head.weight.data[0, 0] = torch.nan
    else:

        def broken(log_p, token_N):
            return _compare_some({**log_p, side: log_p[side].index_fill(-1, torch.tensor([3]), -torch.inf)}, token_N)

        monkeypatch.setattr("loramoe.export.distance._compare_some", broken)
    with pytest.raises(ExportError, match=f"logits of the {side} are not finite. Load the base model in float32;"):
        distance(model, batches(), gates, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, r"must hold labels beside its input_ids \[5, 7\]"),
        ({"labels": torch.zeros(5, 3)}, r"must hold labels beside its input_ids \[5, 7\]"),
        ({"labels": torch.full((5, 7), -100)}, "no label differs from -100. Give rows with some, or raise max"),
        ({"task_types": torch.tensor([0, 1])}, "one type for each row; got 2 for 5 rows"),
    ],
)
def test_rows_that_cannot_be_measured_on(adapted, batches, change, message):
    model = adapted()
    batch = {name: tensor for name, tensor in {**batches()[0], **change}.items() if tensor is not None}
    with pytest.raises(ExportError, match=message):
        distance(model, [batch], means(model, batches()), progress=False)
