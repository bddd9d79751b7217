"""Exact answers without decoding: greedy decoding says a target if, given it so far, each next token is the likeliest.

One forward pass over prompt and target tells that, in place of one pass for every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from loramoe.data import IGNORE_INDEX, SftCollator

TOKENS_PER_BATCH = 2_048


class Item(NamedTuple):
    """What is asked, and what should be said, in token ids."""

    prompt: list[int]
    target: list[int]


@torch.inference_mode()
def exact(model: Any, items: Sequence[Item]) -> NDArray[np.bool_]:
    """Tells which items the model would say word for word.

    Args:
        model: A causal language model, in evaluation mode.
        items: What to ask.

    Returns:
        For each item, whether all tokens of its target are the likeliest ones.
    """
    hits = np.zeros(len(items), dtype=bool)
    order = sorted(range(len(items)), key=lambda index: len(items[index].prompt) + len(items[index].target))
    for batch in _batches(order, items):
        hits[batch] = _said(model, [items[index] for index in batch])
    return hits


def _batches(order: list[int], items: Sequence[Item]) -> list[list[int]]:
    """Items of about the same length together, as many as `TOKENS_PER_BATCH` allows."""
    batches: list[list[int]] = [[]]
    for index in order:
        length = len(items[index].prompt) + len(items[index].target)
        if batches[-1] and (len(batches[-1]) + 1) * length > TOKENS_PER_BATCH:
            batches.append([])
        batches[-1].append(index)
    return batches


def _said(model: Any, items: Sequence[Item]) -> NDArray[np.bool_]:
    rows = [
        {"input_ids": item.prompt + item.target, "labels": [IGNORE_INDEX] * len(item.prompt) + item.target}
        for item in items
    ]
    batch = {name: values.to(model.device) for name, values in SftCollator(pad_token_id=0)(rows).items()}
    labels_BS = batch.pop("labels")[:, 1:]
    likeliest_BS = model(**batch).logits[:, :-1].argmax(dim=-1)
    right_BS = (likeliest_BS == labels_BS) | (labels_BS == IGNORE_INDEX)
    return right_BS.all(dim=-1).cpu().numpy()
