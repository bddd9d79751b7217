"""Continuing prompts: the likeliest token each time, until a token that ends an answer."""

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


def said(model: Any, end: int | None, count: int = 8, end_ids: tuple[int, ...] = ()) -> list[list[int]]:
    texts = decode(model, Numbers(pad_token_id=0, eos_token_id=end), PROMPTS, count, end_ids=end_ids)
    return [list(map(int, text.split())) for text in texts]


def test_greedy_is_greedy_whatever_the_models_own_settings(tiny_llama) -> None:
    model = tiny_llama()
    model.generation_config.eos_token_id = None
    expected = [likeliest(model, prompt, 8) for prompt in PROMPTS]
    own = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "temperature": 0.3, "min_p": 0.2, "typical_p": 0.5}
    model.generation_config.update(**own, do_sample=True, num_beams=3)
    assert said(model, None) == expected


@pytest.mark.parametrize("own", [None, 63, [62, 63]])
def test_the_tokenizers_end_ends_an_answer_too(tiny_llama, own) -> None:
    model = tiny_llama()
    whole = likeliest(model, PROMPTS[0], 8)
    end = whole[3]
    model.generation_config.eos_token_id = own
    assert said(model, end)[0] == whole[: whole.index(end)]


def test_the_models_own_ends_stay(tiny_llama) -> None:
    model = tiny_llama()
    whole = likeliest(model, PROMPTS[0], 8)
    end = whole[3]
    model.generation_config.eos_token_id = [62, end]
    assert said(model, 63)[0] == whole[: whole.index(end)]


def test_what_ended_an_answer_in_training_ends_it_too(tiny_llama) -> None:
    model = tiny_llama()
    whole = likeliest(model, PROMPTS[1], 8)
    end = whole[3]
    model.generation_config.eos_token_id = 62
    assert said(model, 63, end_ids=(end,))[1] == whole[: whole.index(end)]


def test_the_continuation_ends_where_the_positions_end(tiny_llama) -> None:
    model = tiny_llama()
    positions = model.config.max_position_embeddings
    tokenizer = Numbers(pad_token_id=0, eos_token_id=None)
    model.generation_config.eos_token_id = None
    texts = decode(model, tokenizer, [[1] * (positions - 3)], 8)
    assert len(texts[0].split()) == 3
    with pytest.raises(UsageError, match=f"a prompt has {positions} tokens, and the model knows {positions} positions"):
        decode(model, tokenizer, [[1] * positions], 8)
