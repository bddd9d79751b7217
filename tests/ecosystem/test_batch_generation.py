"""Prompts of different lengths in one batch, padded on the left, are continued as each of them alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loramoe.decoding import pad_left

PROMPTS = [[1, 5], [1, 9, 33, 7, 12, 40, 21], [1, 6, 11, 50], [1, *range(20, 40)]]
COUNT = 12


@pytest.fixture(params=["fused", "eager"])
def model(request: pytest.FixtureRequest, adapted: Any) -> Any:
    """The adapted tiny Llama, with each way to compute the mixture on a CPU."""
    from loramoe import use_implementation

    model = adapted(lora_alpha=16)
    use_implementation(model, request.param)
    return model


def batch() -> dict[str, torch.Tensor]:
    input_ids, attention_mask = pad_left(PROMPTS, 0, torch.device("cpu"))
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@torch.inference_mode()
def continued(model: Any, rows: list[list[int]]) -> list[list[int]]:
    """Greedy continuations of rows of one length; none stops before the others."""
    inputs = batch() if rows is PROMPTS else {"input_ids": torch.tensor(rows)}
    new = model.generate(**inputs, max_new_tokens=COUNT, do_sample=False, eos_token_id=None, pad_token_id=0)
    return new[:, inputs["input_ids"].shape[1] :].tolist()


def test_a_batch_is_continued_as_each_prompt_alone(model):
    together = continued(model, PROMPTS)
    assert together == [continued(model, [prompt])[0] for prompt in PROMPTS]
    assert len({tuple(row) for row in together}) > 1
    with model.disable_adapter():
        assert continued(model, PROMPTS) != together


@torch.inference_mode()
def test_logits_of_a_batch_are_those_of_each_prompt_alone(model):
    inputs = batch()
    position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    logits_BSV = model(**inputs, position_ids=position_ids).logits
    for row, prompt in zip(logits_BSV, PROMPTS, strict=True):
        alone = model(input_ids=torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(row[-len(prompt) :], alone, rtol=1e-5, atol=1e-5)
