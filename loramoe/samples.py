"""What a model was called with, as the constraint needs it: which tokens are real, and whose they are.

The constraint sums gates over the real tokens of each sample, so it needs the samples of a batch told apart and padding
told from text, for whatever way the call passed them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def by_name(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a forward by name, positional ones included.

    Args:
        model: The model that was called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        All arguments by the names of the forward's signature.
    """
    if not args:
        return kwargs
    return dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | dict(kwargs)


def real_tokens(model: nn.Module, call: Mapping[str, Any], task_types: Tensor) -> Tensor:
    """Mask of the tokens that are no padding.

    Args:
        model: The model that was called.
        call: What it was called with, by name: `input_ids` or `inputs_embeds`, and maybe `attention_mask`.
        task_types: Task type of each sample, [B].

    Returns:
        Bool [B, S]; all True where no mask was given.

    Raises:
        ValueError: If samples and task types do not go together, or padding cannot be told from text.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"task_types are for decoder-only models; {type(model).__name__} is an encoder-decoder, whose linears see "
            "two different sequences. Leave task_types out, and set blc_weight=0."
        )
    tokens: Tensor = call["inputs_embeds"] if call.get("input_ids") is None else call["input_ids"]
    B, S = tokens.shape[:2]
    if len(task_types) != B:
        raise ValueError(f"task_types must hold one type for each of the B={B} samples; got {len(task_types)}.")
    mask: Tensor | None = call.get("attention_mask")
    if mask is None:
        return torch.ones(B, S, dtype=torch.bool, device=tokens.device)
    if mask.dim() != 2:
        raise ValueError(
            f"with task_types, attention_mask must be [B, S], to tell padding from real tokens; got {list(mask.shape)}."
        )
    return mask[:, -S:].bool()  # with a KV cache the mask also covers the past


def by_sample(linear: str, gates: Tensor, mask_BS: Tensor) -> Tensor:
    """Gates of one linear by sample; some architectures flatten samples and tokens into one dimension.

    Args:
        linear: Name of the linear.
        gates: Its gates, [B, S, E] or [B·S, E].
        mask_BS: Mask of the real tokens.

    Returns:
        Gates [B, S, E].

    Raises:
        ValueError: If the linear saw another number of tokens than the batch has.
    """
    if gates.shape[:-1].numel() != mask_BS.numel():
        raise ValueError(
            f"{linear} saw {gates.shape[:-1].numel()} tokens, the batch has {list(mask_BS.shape)} = {mask_BS.numel()}: "
            "the constraint needs linears that see each token once. Name it in exclude_modules, or give no task_types."
        )
    return gates.reshape(*mask_BS.shape, gates.shape[-1])
