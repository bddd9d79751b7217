"""Which items count as right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.knowledge_forgetting.real import score as module
from experiments.knowledge_forgetting.real.items import Item
from experiments.knowledge_forgetting.real.likelihood import Likelihood
from experiments.knowledge_forgetting.real.score import score


def told(total: list[float], tokens: list[int], likeliest: list[bool]) -> Likelihood:
    return Likelihood(np.array(total), np.array(tokens), np.array(likeliest))


@pytest.fixture
def scripted(monkeypatch, tokenizer):
    """A model that finds the first candidate likeliest, the second by token, and the third more so than before."""
    answers = [told([-3.0, -4.0, -5.0], [1, 4, 1], [False, True, False])]
    before = [told([-4.0, -4.0, -9.0], [1, 4, 1], [False, False, False])]
    calls = iter([answers, before])
    monkeypatch.setattr(module, "likelihoods", lambda *args, **options: next(calls))
    return lambda right, measure: score(None, tokenizer, [Item("what", ("a", "b", "c"), right)], measure).tolist()


@pytest.mark.parametrize(
    ("measure", "chosen"), [("total", 0), ("per_token", 1), ("begins", 1), ("exact", 1), ("gain", 2)]
)
@pytest.mark.parametrize("right", [0, 1, 2])
def test_measures(scripted, measure, chosen, right):
    assert scripted(right, measure) == [right == chosen]


def test_exact_wants_the_end_too(model, tokenizer):
    """What greedy decoding says is exact; the first word of it is not, but it begins so."""
    prompt = "What is the capital of"  # any prompt: what the model says to it is the answer
    ids = tokenizer(prompt)["input_ids"] + [tokenizer.eos_token_id]
    said = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :]
    assert said[-1] == tokenizer.eos_token_id
    answer = tokenizer.decode(said[:-1])
    first = answer.split()[0]
    items = [Item(prompt, (answer,)), Item(prompt, (first,))]
    assert score(model, tokenizer, items, "exact", progress=False).tolist() == [True, answer == first]
    assert score(model, tokenizer, items, "begins", progress=False).tolist() == [True, True]


def test_an_answer_that_goes_on_is_not_its_beginning(monkeypatch, tokenizer):
    """A model that says "72": the item whose answer is "7" must not count."""
    monkeypatch.setattr(module, "likelihoods", lambda *args: [told([0.0, 0.0], [1, 2], said) for said in answers])
    items = [Item("6 + 66", ("7", "72")), Item("6 + 66", ("72", "721"))]
    answers = [[True, True], [True, False]]
    assert score(None, tokenizer, items, "begins").tolist() == [False, True]
