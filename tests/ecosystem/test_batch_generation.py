"""Prompts of different lengths in one batch, padded on the left, are continued as each of them alone."""

from __future__ import annotations

from typing import Any

import torch

from loramoe.decoding import pad_left

PROMPTS = [[1, 5], [1, 9, 33, 7, 12, 40, 21], [1, 6, 11, 50], [1, *range(20, 40)]]


@torch.inference_mode()
def continued(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    input_ids, attention_mask = pad_left(prompts, 0, torch.device("cpu"))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    tokens = model.generate(input_ids=input_ids, attention_mask=attention_mask, **options)
    return tokens[:, input_ids.shape[1] :].tolist()


def test_a_batch_is_continued_as_each_prompt_alone(adapted: Any) -> None:
    model = adapted(lora_alpha=16)
    together = continued(model, PROMPTS)
    assert together == [continued(model, [prompt])[0] for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in together}) > 1
    with model.disable_adapter():
        assert continued(model, PROMPTS) != together
