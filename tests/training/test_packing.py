"""Attention by sample, and the check that refuses a model which would let packed samples see each other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from loramoe.training.packing import BY_SAMPLE, attend_by_sample, attention_by_sample, check_packing
from tests.tuner.test_architectures import ARCHITECTURES, LLAMA

LENGTHS = [3, 1, 5]
CPU = torch.device("cpu")


def model_of(architecture: str, attention: str | None = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = ARCHITECTURES.get(architecture, (LLAMA,))[0] | changes
    wish = {} if attention is None else {"attn_implementation": attention}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes), **wish)


def same_sample(lengths: list[int]) -> Tensor:
    """[S, S], True where two tokens belong to one sample."""
    sample_S = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return sample_S[:, None] == sample_S


@pytest.mark.parametrize(("masked", "window"), [(True, 9), (True, 2), (False, 9)])
def test_attention_by_sample_is_attention_under_the_mask_of_the_row(masked: bool, window: int) -> None:
    module = SimpleNamespace(is_causal=True, num_key_value_groups=2)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 9, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    distance = torch.arange(9)[:, None] - torch.arange(9)
    mask = (same_sample(LENGTHS) & (distance >= 0) & (distance < window))[None, None]
    expected, _ = sdpa_attention_forward(module, q, k, v, mask)
    bounds = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
    got, weights = attention_by_sample(module, q, k, v, mask if masked else None, cu_seq_lens_q=bounds)
    assert weights is None
    unread = {"cu_seq_lens_q": bounds.to("meta"), "sample_lengths": LENGTHS}  # whose values nobody can ask for
    assert torch.equal(attention_by_sample(module, q, k, v, mask if masked else None, **unread)[0], got)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), (q, k, v)), wanted, rtol=1e-12, atol=1e-14)


def test_without_bounds_it_is_plain_attention(ids: Tensor) -> None:
    model = model_of("llama").eval()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    logits, text = (f() for f in (lambda: model(ids, mask).logits, lambda: model.generate(ids, attention_mask=mask)))
    attend_by_sample(model)
    assert model.config._attn_implementation == BY_SAMPLE
    assert torch.equal(model(ids, mask).logits, logits)
    assert torch.equal(model.generate(ids, attention_mask=mask), text)


def test_other_attention_stays() -> None:
    model = model_of("llama", "eager")
    attend_by_sample(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_that_keep_samples_apart_pass(architecture: str, dtype: torch.dtype) -> None:
    model = model_of(architecture).to(dtype).train()
    model.get_output_embeddings().eval()
    modes = [module.training for module in model.modules()]
    attend_by_sample(model)
    state = torch.get_rng_state()
    check_packing(model, model.config, CPU)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)  # or a packed run would have another dropout


def test_a_model_that_does_not_is_refused() -> None:
    model = model_of("opt", "eager")
    with pytest.raises(ValueError, match=r"does not keep the samples of a packed row apart: .* Set --packing false"):
        check_packing(model, model.config, CPU)


def test_a_cache_is_noticed() -> None:
    """What makes a Llama leak: the cache that it makes by default."""
    model = model_of("llama")
    with pytest.raises(ValueError, match="does not keep the samples of a packed row apart"):
        check_packing(WithCache(model), model.config, CPU)


class WithCache(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**{**inputs, "use_cache": True})


def test_layers_without_a_mask_are_refused() -> None:
    model = model_of("lfm2", layer_types=["conv", "full_attention"])
    with pytest.raises(ValueError, match=r"this model has conv layers\. Set --packing false"):
        check_packing(model, model.config, CPU)


class Narrow(nn.Module):
    def forward(self, input_ids: Tensor) -> Any: ...


def test_a_model_that_does_not_take_packed_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not take packed rows .*unexpected keyword .* Set --packing false"):
        check_packing(Narrow(), model_of("llama").config, CPU)
