"""Continuing prompts: the likeliest token each time, until a token that ends an answer or the positions end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loramoe.decoding import decode
from loramoe.utils import UsageError

PROMPTS = [[1, 5, 6], [1, 9, 10, 11, 12]]


class Numbers(SimpleNamespace):
    """A tokenizer that shows ids."""

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


@torch.no_grad()
def likeliest(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def continued(model: Any, prompts: Any = PROMPTS, end: int | None = None, **options: Any) -> list[list[int]]:
    texts = decode(model, Numbers(pad_token_id=0, eos_token_id=end), prompts, 8, **options)
    return [list(map(int, text.split())) for text in texts]


@pytest.fixture
def model(tiny_llama: Any) -> Any:
    """The tiny Llama, without an end token of its own."""
    model = tiny_llama()
    model.generation_config.eos_token_id = None
    return model


def test_greedy_is_greedy_whatever_the_models_own_settings(model: Any) -> None:
    expected = [likeliest(model, prompt, 8) for prompt in PROMPTS]
    own = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "temperature": 0.3, "min_p": 0.2, "typical_p": 0.5}
    model.generation_config.update(**own, do_sample=True, num_beams=3)
    assert continued(model) == expected


@pytest.mark.parametrize("whose", ["models", "tokenizer", "template"])
def test_every_kind_of_end_token_ends_an_answer(model: Any, whose: str) -> None:
    whole = likeliest(model, PROMPTS[0], 8)
    end = whole[3]
    model.generation_config.eos_token_id = [62, end] if whose == "models" else 63
    ends = {"end": end} if whose == "tokenizer" else {"end_ids": (end,)} if whose == "template" else {}
    assert continued(model, **ends)[0] == whole[: whole.index(end)]


def test_the_continuation_ends_where_the_positions_end(model: Any) -> None:
    positions = model.config.max_position_embeddings
    assert len(continued(model, [[1] * (positions - 3)])[0]) == 3
    with pytest.raises(UsageError, match=f"a prompt has {positions} tokens, and the model knows {positions} positions"):
        continued(model, [[1] * positions])


def test_sampling_draws(model: Any) -> None:
    torch.manual_seed(0)
    assert len({tuple(continued(model, temperature=5.0)[0]) for _ in range(4)}) > 1
