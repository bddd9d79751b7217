"""Packed batches in a model of transformers: attention that costs what its samples cost, and a check that it is right.

The SDPA attention of transformers meets a packed row with a dense mask [S, S] over the whole row, most of it False.
`attention_by_sample` is the same attention, computed sample by sample with that mask's own blocks on the diagonal:
exact for whatever the mask says within a sample (sliding windows too), and Σ length² instead of (Σ length)².
FlashAttention needs none of this, its varlen kernels read the samples' bounds; eager attention stays as it is.

Whether a model keeps packed samples apart depends on its architecture, its attention and the version of transformers,
and one that does not says nothing: opt and biogpt do under `attention_by_sample` but not under eager attention, bloom
and falcon under none, stablelm in transformers 5.23 but not in 4.57. So none is trusted: `check_packing` packs two
samples and compares with one of them alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from loramoe.data import PackedCollator

BY_SAMPLE = "sdpa_by_sample"
TOLERATED = 0.05  # of what the other sample's presence changes; rounding in bfloat16 came to 0.01, in float32 to 1e-5
_INSTEAD = "Set --packing false; --group_by_length true wastes little padding too."
_LENGTHS = (5, 8)  # of the two samples of the check
_ATTENTION = {
    "full_attention",
    "sliding_attention",
    "chunked_attention",
}  # layers in which a mask decides who sees whom


def attention_by_sample(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    sample_lengths: list[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA attention that looks at the diagonal blocks of a packed row only, by the interface of transformers.

    Args:
        module: The attention module.
        query: [1, heads, S, head size].
        key: [1, key heads, S, head size].
        value: As the key.
        attention_mask: Mask of the whole row, [1, 1, S, S]; None where all tokens before are seen.
        cu_seq_lens_q: Bounds of the samples, [M + 1]; None where the batch is not packed: then this is SDPA.
        sample_lengths: Lengths of the samples, M ints. Without them they are read from the bounds, for which the
            device has to finish its work in each layer.
        kwargs: As for SDPA.

    Returns:
        What each token attended to, [1, S, heads, head size]; and None for the weights.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    lengths: list[int] = cu_seq_lens_q.diff().tolist() if sample_lengths is None else sample_lengths
    parts, begin = [], 0
    for q, k, v in zip(*(torch.split(tensor, lengths, dim=2) for tensor in (query, key, value)), strict=True):
        end = begin + q.shape[2]
        block = None if attention_mask is None else attention_mask[..., begin:end, begin:end]
        parts.append(sdpa_attention_forward(module, q, k, v, block, **kwargs)[0])
        begin = end
    return torch.cat(parts, dim=1), None


def attend_by_sample(model: Any) -> None:
    """Have a model that uses SDPA attention use `attention_by_sample`; any other attention stays.

    Args:
        model: A base model of transformers.
    """
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(BY_SAMPLE, attention_by_sample)
    AttentionMaskInterface.register(BY_SAMPLE, sdpa_mask)
    model.set_attn_implementation(BY_SAMPLE)


@torch.no_grad()
def check_packing(model: nn.Module, config: Any, device: torch.device) -> None:
    """Refuses a model that lets the samples of a packed row see each other, or counts their positions wrong.

    A sample's logits are compared between a packed row and a row of its own. The measure is what the other sample
    changes where it may be seen, as the beginning of the same text.

    Args:
        model: A causal language model, wrapped for training or not.
        config: Its configuration.
        device: Where it takes its inputs.

    Raises:
        ValueError: If it does, or does not take packed rows at all.
    """
    text = config.get_text_config()
    mixing = sorted(set(getattr(text, "layer_types", None) or ()) - _ATTENTION)
    if mixing:  # with the small weights of a new model, a convolution's leak would drown in rounding
        raise ValueError(
            f"packing needs layers that are told apart by a mask; this model has {', '.join(mixing)} layers. {_INSTEAD}"
        )
    generator = torch.Generator().manual_seed(0)
    before, sample = (torch.randint(text.vocab_size, (n,), generator=generator).tolist() for n in _LENGTHS)

    def logits(*samples: list[int]) -> Tensor:
        batch = PackedCollator()([{"input_ids": ids, "labels": ids} for ids in samples])
        inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items() if k != "labels"}
        last: Tensor = model(**inputs).logits[0, -len(sample) :]
        return last.double()

    with _evaluating(model):
        try:
            alone, packed, seen = logits(sample), logits(before, sample), logits(before + sample)
        except (TypeError, ValueError) as refusal:  # of an unknown argument, in words that differ by architecture
            raise ValueError(f"this model does not take packed rows ({refusal}). {_INSTEAD}") from refusal
    change, measure = (packed - alone).norm(), (seen - alone).norm()
    if not change <= TOLERATED * measure:
        raise ValueError(
            "this model does not keep the samples of a packed row apart: packing changes a sample's logits by "
            f"{change:.3g}, seeing the other sample as part of its own text by {measure:.3g}; expected at most "
            f"{TOLERATED} of that. {_INSTEAD}"
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module's own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
