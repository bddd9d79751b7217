"""Rows of several samples give what padded rows give: loss, gradients, constraint, whatever the architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import loramoe
from loramoe import BalanceStats
from loramoe.data import PackedCollator, SftCollator
from loramoe.training.model import BY_SAMPLE, enable_varlen_attention
from tests.constrained import adapted
from tests.tuner.test_architectures import ARCHITECTURES

# transformers makes no mask of packed samples for opt; `attention_by_sample` does without (see test_packing.py).
CASES = [("llama", "eager"), ("llama", "sdpa"), ("gemma3_text", "sdpa"), *((name, BY_SAMPLE) for name in ARCHITECTURES)]
LENGTHS = (7, 2, 9, 4)


def model_of(architecture: str, attention: str, **config: Any) -> Any:
    """A tiny adapted model in training mode, float64."""
    torch.manual_seed(0)
    sizes = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture][0])
    first = "eager" if attention == "eager" else "sdpa"
    base = AutoModelForCausalLM.from_config(sizes, attn_implementation=first).double()
    if attention == BY_SAMPLE:
        enable_varlen_attention(base)
    return adapted(base, r=2, blc_weight=0.5, **config).double()


def samples(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 40, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "labels": list(row), "task_types": m % 2} for m, row in enumerate(ids)]


def step(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor], BalanceStats]:
    """Loss, gradients of the adapter, and what the constraint saw."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return loss.detach(), gradients, loramoe.last_balance(model)


def assert_same(packed: Any, padded: Any, rtol: float, atol: float) -> None:
    torch.testing.assert_close(packed[0], padded[0], rtol=rtol, atol=atol)
    torch.testing.assert_close(packed[1], padded[1], rtol=rtol, atol=atol)
    for name in ("constraint", "constraint_L", "gate_TLE", "tokens_T"):
        torch.testing.assert_close(getattr(packed[2], name), getattr(padded[2], name), rtol=rtol, atol=atol)
    assert packed[2].task_types == padded[2].task_types


@pytest.mark.parametrize(("architecture", "attention"), CASES)
def test_loss_gradients_constraint_and_shares(architecture: str, attention: str) -> None:
    model, rows = model_of(architecture, attention), samples()
    padded, packed = step(model, SftCollator(0)(rows)), step(model, PackedCollator()(rows))
    assert padded[2].constraint > 0
    # The gates are float32 whatever the model (the constraint is then too): their rounding is what is left.
    assert_same(packed, padded, rtol=1e-5, atol=1e-7)


def test_several_packed_rows() -> None:
    """Two rows of two samples each, as other collators make them."""
    model, rows = model_of("llama", "sdpa"), samples((7, 2, 4, 5))
    one = PackedCollator()(rows)
    two = {name: one[name].view(2, 9) for name in ("input_ids", "position_ids", "labels")}
    assert_same(step(model, {**two, "task_types": one["task_types"]}), step(model, one), rtol=1e-5, atol=1e-7)


def test_a_forgotten_cache_is_no_leak() -> None:
    """By default transformers makes a cache, and with it takes a packed row for one text."""
    model, batch = model_of("llama", "sdpa"), PackedCollator()(samples())
    expected = model(**batch).loss
    assert model.config.use_cache
    del batch["use_cache"]
    assert torch.equal(model(**batch).loss, expected)
