"""One forward pass for all candidates of an item says what one pass for each says."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, LoraMoeConfig, get_peft_model
from torch import nn

from experiments.knowledge_forgetting.real.items import Request
from experiments.knowledge_forgetting.real.likelihood import attention, layout, likelihoods
from loramoe.training.model import enable_varlen_attention

MLP = ["gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "base": None,
    "lora": LoraConfig(r=4, target_modules=[*MLP, "q_proj"]),
    "loramoe": LoraMoeConfig(r=2, lora_nums=4, blc_weight=0.1, blc_alpha=0.1, target_modules=MLP),
}


def made_up(count: int = 30) -> list[Request]:
    rng = random.Random(0)

    def ids(most: int) -> list[int]:
        return [rng.randrange(4, 2048) for _ in range(rng.randint(1, most))]

    return [Request(ids(12), [ids(6) for _ in range(rng.randint(1, 5))]) for _ in range(count)]


def with_adapter(model: nn.Module, name: str) -> nn.Module:
    if ADAPTERS[name] is None:
        return model
    torch.manual_seed(0)
    model = get_peft_model(model, ADAPTERS[name]).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return model


@torch.inference_mode()
def one_by_one(model: nn.Module, request: Request) -> tuple[list[float], list[bool]]:
    totals, likeliest = [], []
    for candidate in request.candidates:
        ids = torch.tensor([request.prompt + candidate])
        logits_CV = model(input_ids=ids).logits[0, len(request.prompt) - 1 : -1]
        label_C = torch.tensor(candidate)
        totals.append(logits_CV.log_softmax(dim=-1)[range(len(candidate)), label_C].sum().item())
        likeliest.append(bool((logits_CV.argmax(dim=-1) == label_C).all()))
    return totals, likeliest


def test_layout_is_a_tree():
    tree = layout([Request([7, 8], [[1, 2, 3], [4], [5, 6]]), Request([9], [[1]])])
    assert tree.ids_BS.tolist() == [[7, 8, 1, 2, 5], [9, 0, 0, 0, 0]]
    assert tree.positions_BS.tolist() == [[0, 1, 2, 3, 2], [0, 0, 0, 0, 0]]
    assert tree.branch_BS.tolist() == [[0, 0, 1, 1, 3], [0, -1, -1, -1, -1]]
    assert tree.source_T.tolist() == [1, 2, 3, 1, 1, 4, 5]
    assert tree.label_T.tolist() == [1, 2, 3, 4, 5, 6, 1]
    assert tree.owner_T.tolist() == [0, 0, 0, 1, 2, 2, 3]


def test_candidates_do_not_see_each_other():
    seen = attention(torch.tensor([[0, 0, 1, 1, 3]]), torch.float32)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_agrees_with_one_pass_for_each(model, adapter, implementation):
    model.set_attn_implementation(implementation)
    model = with_adapter(model, adapter).double()  # so that what is compared is not rounding
    asked = made_up()
    asked.append(greedy(model, [5, 6, 7], 3))
    told = likelihoods(model, asked, tokens_per_batch=100, progress=False)
    for request, one in zip(asked, told, strict=True):
        totals, likeliest = one_by_one(model, request)
        np.testing.assert_allclose(one.total, totals, rtol=0, atol=1e-4)
        assert one.likeliest.tolist() == likeliest
        assert one.tokens.tolist() == [len(candidate) for candidate in request.candidates]
    assert told[-1].likeliest.tolist() == [True, False]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_attention_of_packed_training_gives_the_same(model, adapter):
    """A run trains with `enable_varlen_attention` and scores it: the mask must mean what it does in SDPA."""
    model.set_attn_implementation("sdpa")
    asked = made_up()
    expected = likelihoods(with_adapter(model, adapter), asked, tokens_per_batch=100, progress=False)
    enable_varlen_attention(model)
    assert model.config._attn_implementation == "sdpa_by_sample"
    for one, other in zip(expected, likelihoods(model, asked, tokens_per_batch=100, progress=False), strict=True):
        np.testing.assert_array_equal(one.total, other.total)
        np.testing.assert_array_equal(one.likeliest, other.likeliest)


def greedy(model: nn.Module, prompt: list[int], length: int) -> Request:
    """What the model would say, and the same with another last token."""
    ids = list(prompt)
    for _ in range(length):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    said = ids[len(prompt) :]
    return Request(prompt, [said, [*said[:-1], said[-1] ^ 1]])


def test_batches_change_nothing(model):
    asked = made_up()
    alone, together = (likelihoods(model, asked, tokens_per_batch=most, progress=False) for most in (1, 10_000))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.total, other.total, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_bfloat16_makes_no_ties(model):
    candidates = [[token] for token in range(4, 1_004)]
    with torch.autocast("cpu", torch.bfloat16):
        (told,) = likelihoods(model, [Request([5, 6, 7], candidates)], progress=False)
    totals, _ = one_by_one(model, Request([5, 6, 7], candidates))
    assert len(set(told.total)) > 950  # a thousand logits in bfloat16 have some hundred values
    assert np.corrcoef(told.total, totals)[0, 1] > 0.99
