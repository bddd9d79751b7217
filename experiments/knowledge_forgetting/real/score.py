"""Which items a model gets right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.knowledge_forgetting.real.items import Item, Measure, requests, unasked
from experiments.knowledge_forgetting.real.likelihood import TOKENS_PER_BATCH, likelihoods


def score(
    model: Any,
    tokenizer: Any,
    items: Sequence[Item],
    measure: Measure,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = True,
) -> NDArray[np.bool_]:
    """Puts items to a model.

    Args:
        model: A causal language model, with or without an adapter, in evaluation mode.
        tokenizer: Its tokenizer.
        items: The items.
        measure: How they are judged.
        tokens_per_batch: Most tokens that are read at once.
        progress: Show a progress bar.

    Returns:
        Whether each item is answered rightly.
    """
    told = likelihoods(model, requests(items, tokenizer, ended=measure == "exact"), tokens_per_batch, progress)
    if measure in ("begins", "exact"):
        said = [one.likeliest[item.right] and one.likeliest.sum() == 1 for one, item in zip(told, items, strict=True)]
        return np.array(said, dtype=bool)
    figures = [one.total / one.tokens if measure == "per_token" else one.total for one in told]
    if measure == "gain":
        before = likelihoods(model, unasked(items, tokenizer), tokens_per_batch, progress)
        figures = [one - prior.total for one, prior in zip(figures, before, strict=True)]
    return np.array([one.argmax() == item.right for one, item in zip(figures, items, strict=True)], dtype=bool)
