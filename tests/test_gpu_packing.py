"""On a GPU: packed rows through FlashAttention's varlen kernels, and through PyTorch's attention sample by sample."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

import loramoe
from loramoe.data import PackedCollator, SftCollator
from loramoe.training.model import check_packing, enable_varlen_attention
from tests.constrained import adapted, llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
with_flash = pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="needs the flash-attn package")
LENGTHS = (70, 3, 128, 41)


def rows(seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(1, 40, (length,), generator=generator).tolist() for length in LENGTHS]
    return [{"input_ids": row, "labels": row, "task_types": m % 2} for m, row in enumerate(ids)]


def model_with(attention: str, dtype: torch.dtype) -> Any:
    base = llama(attn_implementation=attention).to("cuda", dtype)
    enable_varlen_attention(base)
    return adapted(base, blc_weight=0.5).to("cuda", dtype)


def on_gpu(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def assert_packed_is_padded(model: Any, rtol: float, atol: float) -> None:
    seen = []
    for collate in (SftCollator(0), PackedCollator()):
        model.zero_grad()
        loss = model(**on_gpu(collate(rows()))).loss
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        seen.append((loss.detach(), loramoe.last_balance(model).constraint_L, gradients))
    torch.testing.assert_close(seen[1], seen[0], rtol=rtol, atol=atol)


def assert_no_sample_sees_another(model: Any) -> None:
    one, other = rows(), rows(seed=1)
    with torch.no_grad():
        before, after = (model(**on_gpu(PackedCollator()(batch))).logits[0] for batch in (one, [other[0], *one[1:]]))
    assert not torch.equal(before[: LENGTHS[0]], after[: LENGTHS[0]])
    assert torch.equal(before[LENGTHS[0] :], after[LENGTHS[0] :])


@with_flash
def test_flash_attention() -> None:
    model = model_with("flash_attention_2", torch.bfloat16)
    check_packing(model, model.config, torch.device("cuda"))
    assert_packed_is_padded(model, rtol=5e-2, atol=5e-2)  # bfloat16 has three digits
    assert_no_sample_sees_another(model.eval())


def test_attention_by_sample() -> None:
    model = model_with("sdpa", torch.float32)
    check_packing(model, model.config, torch.device("cuda"))
    assert_packed_is_padded(model, rtol=1e-3, atol=1e-5)
    assert_no_sample_sees_another(model.eval())
