"""Exact answers by one forward pass are those of greedy decoding."""

from __future__ import annotations

import random

import numpy as np
import torch

from experiments.knowledge_forgetting import exact as module
from experiments.knowledge_forgetting.exact import Item, exact
from tests.experiments.knowledge_forgetting.made_up import MadeUpScale


def decoded(model, prompt: list[int], length: int) -> list[int]:
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(length):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_exact_is_what_greedy_decoding_says(monkeypatch):
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 60)
    model, _ = MadeUpScale().base()
    rng = random.Random(0)
    items, wanted = [], []
    for number in range(40):
        prompt = [rng.randrange(4, 2048) for _ in range(rng.randrange(1, 12))]
        target = decoded(model, prompt, rng.randrange(1, 6))
        if number % 2:
            target[rng.randrange(len(target))] += 1
        items.append(Item(prompt, target))
        wanted.append(number % 2 == 0)
    assert np.array_equal(exact(model, items), wanted)
