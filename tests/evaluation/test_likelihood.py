"""Likelihoods: those of a loop over single candidates, whatever the batch, its order and its padding."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from loramoe.data import get_template
from loramoe.evaluation import read_task
from loramoe.evaluation.likelihood import log_likelihoods
from loramoe.evaluation.requests import Request, encode
from loramoe.utils import UsageError

EQUAL = {"rtol": 1e-9, "atol": 1e-9}


def one_by_one(model, requests) -> list[list[float]]:
    """Every candidate alone, behind its whole prompt, without cache and padding."""
    return [[alone(model, request.prompt, target) for target in request.targets] for request in requests]


@torch.no_grad()
def alone(model, prompt: list[int], target: list[int]) -> float:
    logits_SV = model(torch.tensor([prompt + target]), use_cache=False).logits[0].double()
    chosen = F.log_softmax(logits_SV, dim=-1)[range(len(prompt) - 1, len(prompt) + len(target) - 1), target]
    return float(chosen.sum())


def flat(found: list[list[float]]) -> torch.Tensor:
    return torch.tensor([figure for figures in found for figure in figures], dtype=torch.float64)


@pytest.fixture
def requests(write, questions, tokenizer) -> list[Request]:
    examples = read_task(write(questions)).examples
    return encode(examples, get_template("release", tokenizer), tokenizer)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_batch_is_a_loop_over_single_candidates(model, requests, batch_size: int) -> None:
    model.double().eval()
    found = log_likelihoods(model, requests, batch_size, progress=False)
    assert [len(figures) for figures in found] == [len(request.targets) for request in requests]
    torch.testing.assert_close(flat(found), flat(one_by_one(model, requests)), **EQUAL)


def test_with_an_adapter_too(adapted, requests) -> None:
    model = adapted().double()
    expected = flat(one_by_one(model, requests))
    torch.testing.assert_close(flat(log_likelihoods(model, requests, 5, progress=False)), expected, **EQUAL)
    with model.disable_adapter():
        base = flat(log_likelihoods(model, requests, 5, progress=False))
    assert (base - expected).abs().max() > 0.1


def test_the_order_of_rows_does_not_matter(model, requests) -> None:
    model.double().eval()
    found = log_likelihoods(model, requests, 4, progress=False)
    turned = log_likelihoods(model, requests[::-1], 4, progress=False)[::-1]
    torch.testing.assert_close(flat(turned), flat(found), **EQUAL)


def test_prompts_of_one_token_need_no_cache(model) -> None:
    model.double().eval()
    requests = [Request([1], [1], [[5], [6, 7]]), Request([9], [9], [[5, 2]])]
    found = log_likelihoods(model, requests, progress=False)
    torch.testing.assert_close(flat(found), flat(one_by_one(model, requests)), **EQUAL)


def test_float32_agrees(model, requests) -> None:
    expected = flat(one_by_one(model.double().eval(), requests))
    found = flat(log_likelihoods(model.float(), requests, progress=False))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
ARCHITECTURES = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "Falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "alibi": True},
    "Mistral": {**SMALL, "sliding_window": 4},
    "Gemma3_text": {
        **SMALL,
        "head_dim": 16,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "LFM2": {**SMALL, "layer_types": ["conv", "full_attention"]},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_kinds_of_positions_and_caches(architecture: str, requests) -> None:
    if architecture == "LFM2" and transformers.__version__.startswith("4."):
        pytest.skip("the cache that LFM2 has in transformers 4 cannot be laid out again for candidates")
    config = AutoConfig.for_model(architecture.lower(), vocab_size=64, **ARCHITECTURES[architecture])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    found = log_likelihoods(model, requests, 6, progress=False)
    torch.testing.assert_close(flat(found), flat(one_by_one(model, requests)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_likelihoods_that_are_not_finite_are_refused(model, requests, value: float) -> None:
    model.lm_head.weight.data[5] = value
    with pytest.raises(
        UsageError, match=r"expected finite log-likelihoods, got .* from logits in torch.float32. Load the"
    ):
        log_likelihoods(model, requests, progress=False)
