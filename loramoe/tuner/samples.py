"""Which samples a call of the model holds, and whether its task types fit them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loramoe.balance import Membership, match_types, positions_as_samples, rows_as_samples


def arguments_by_name(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a forward by the names of its signature, positional ones included."""
    if not args:
        return kwargs
    return dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | dict(kwargs)


def membership_of(model: nn.Module, call: Mapping[str, Any], task_types: Tensor) -> Membership:
    """Return which token of a batch belongs to which sample.

    With an attention mask, or without position ids, each row is a sample. Otherwise samples start where the position
    ids do not continue by one, so that a row may hold several.

    Args:
        model: The model that is called.
        call: Its arguments by name: `input_ids` or `inputs_embeds`, and maybe `attention_mask` and `position_ids`.
        task_types: Task type of each sample, [M].

    Returns:
        The membership, on the device of the tokens.

    Raises:
        ValueError: If samples and task types do not fit, padding is unknown, or the model would let the samples of a
            row see each other.
    """
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"task_types are for decoder-only models; {type(model).__name__} is an encoder-decoder, whose layers see "
            "two different sequences. Leave task_types out, and set blc_weight=0."
        )
    tokens: Tensor = call["inputs_embeds"] if call.get("input_ids") is None else call["input_ids"]
    B, S = tokens.shape[:2]
    mask: Tensor | None = call.get("attention_mask")
    position_ids: Tensor | None = call.get("position_ids")
    if len(task_types) > B and position_ids is not None:
        _validate_several_samples_a_row(model, call, B)
    elif len(task_types) != B:
        raise ValueError(
            f"task_types must hold one type for each of the B={B} samples; got {len(task_types)}. Where a row holds "
            "several samples, pass position_ids that restart at each of them."
        )
    if mask is None and position_ids is not None and position_ids.dim() == 2:
        return positions_as_samples(position_ids.expand(B, S), len(task_types))
    if mask is None:
        return rows_as_samples(torch.ones(B, S, device=tokens.device))
    if mask.dim() != 2:
        raise ValueError(
            f"with task_types, attention_mask must be [B, S], to tell padding from real tokens; got {list(mask.shape)}."
        )
    return rows_as_samples(mask[:, -S:] != 0)  # with a KV cache the mask also covers the past


def _validate_several_samples_a_row(model: nn.Module, call: Mapping[str, Any], B: int) -> None:
    """Refuse what keeps transformers from keeping the samples of a row apart by their position ids."""
    for name in ("attention_mask", "past_key_values"):
        if call.get(name) is not None:
            raise ValueError(
                f"rows that hold several samples need {name}=None: with it, transformers would let the samples see "
                f"each other. Leave {name} out, or give each sample a row of its own."
            )
    attention = str(getattr(getattr(model, "config", None), "_attn_implementation", None))
    if B > 1 and "flash" in attention:
        raise ValueError(
            f"{attention} keeps samples apart in a single row only; got B={B} rows. Put all samples into one row, or "
            "give each sample a row of its own."
        )


def validate_task_types(model: nn.Module, task_types: Any) -> None:
    """Refuse task types that are no vector of integers, and models that nn.DataParallel has copied."""
    if getattr(model, "_is_replica", False):
        raise RuntimeError(
            "nn.DataParallel splits a batch among threads, and the constraint would compare fewer samples than the "
            "batch has. Start one process for each GPU (torchrun --nproc_per_node N), or use a single one "
            "(CUDA_VISIBLE_DEVICES=0)."
        )
    if not isinstance(task_types, Tensor) or task_types.dim() != 1 or task_types.is_floating_point():
        got = f"{task_types.dtype} {list(task_types.shape)}" if isinstance(task_types, Tensor) else repr(task_types)
        raise ValueError(
            f"task_types must be one integer for each sample, a tensor [B] of int64; got {got}. Have the collator make "
            "it, as loramoe.data.SftCollator does, or give torch.tensor([1, 0]) for two samples."
        )


def validate_samples(membership: Membership, task_types_M: Tensor, expert_types: Sequence[Sequence[int]]) -> None:
    """Refuse task types that fit neither the samples nor the experts. It waits for the device, so call it last."""
    M = len(task_types_M)
    if torch.compiler.is_compiling():  # a compiled graph has no place for a message with values
        fits = [match_types(task_types_M, types).any(-1).all() for types in expert_types]
        fits += [] if membership.starts is None else [membership.starts == M]
        for each in fits:
            torch._assert_async(each, "task_types do not fit the samples or the experts; call the model uncompiled")
        return
    if membership.starts is not None and int(membership.starts) != M:
        B, S = membership.shape
        raise ValueError(
            f"task_types must hold one type for each sample; got {M} types, while position_ids start "
            f"{int(membership.starts)} samples in the B={B} rows of S={S} tokens. Let position_ids count 0, 1, 2, … "
            "from the start of each sample."
        )
    for types in expert_types:
        unknown = sorted(set(task_types_M.tolist()) - set(types))
        if unknown:
            raise ValueError(
                f"task_types has {unknown[0]}, which is the type of no expert; the experts have types "
                f"{sorted(set(types))}. Correct the task_type of the data, or set expert_types."
            )
