"""One forward pass of an adapted model: the samples that it holds, and the gates that its layers add.

The hooks of the base model open and close a pass (`hooks.py`), the layers add their gates to it (`layer.py`). It lives
in a context of its own thread. Passes nest: a model that is called within the forward of another has its own. Outside
of a pass, as when gradient checkpointing runs a layer again during backward, nothing is collected.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from loramoe.balance.constraint import Membership, match_types, positions_as_samples, rows_as_samples


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
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder, whose layers see two sequences, and task_types are for "
            "decoder-only models. Leave them out, and set blc_weight=0."
        )
    tokens: Tensor | None = call.get("inputs_embeds") if call.get("input_ids") is None else call["input_ids"]
    if tokens is None or tokens.dim() < 2:
        raise ValueError(
            f"task_types need input_ids or inputs_embeds of B rows and S tokens; {type(model).__name__} was given "
            f"{sorted(call)}. Leave task_types out, and set blc_weight=0."
        )
    B, S = tokens.shape[:2]
    mask: Tensor | None = call.get("attention_mask")
    position_ids: Tensor | None = call.get("position_ids")
    if len(task_types) > B and position_ids is not None and position_ids.dim() == 2:
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
                f"rows that hold several samples need {name}=None, or transformers lets the samples see each other. "
                f"Leave {name} out, or give each sample a row of its own."
            )
    attention = str(getattr(getattr(model, "config", None), "_attn_implementation", None))
    if B > 1 and "flash" in attention:
        raise ValueError(f"{attention} keeps samples apart in a single row only; got B={B}. Put all into one row.")


def validate_task_types(model: nn.Module, task_types: Any) -> None:
    """Refuse task types that are no vector of integers, and models that nn.DataParallel has copied."""
    if getattr(model, "_is_replica", False):
        raise RuntimeError(
            "nn.DataParallel splits a batch among threads, which the constraint does not support. Start one process "
            "per GPU (torchrun --nproc_per_node N), or use a single one (CUDA_VISIBLE_DEVICES=0)."
        )
    is_vector = isinstance(task_types, Tensor) and task_types.dim() == 1
    if not is_vector or task_types.is_floating_point() or task_types.dtype == torch.bool:
        got = f"{task_types.dtype} {list(task_types.shape)}" if isinstance(task_types, Tensor) else repr(task_types)
        raise ValueError(
            f"task_types must be one integer for each sample, a tensor [B] of int64; got {got}. Have the collator make "
            "it, as loramoe.data.SftCollator does."
        )


def validate_samples(membership: Membership, task_types_M: Tensor, expert_types: Sequence[Sequence[int]]) -> None:
    """Refuse task types that fit neither the samples nor the experts. It waits for the device, so call it last."""
    M = len(task_types_M)
    if torch.compiler.is_compiling():  # a compiled graph has no place for a message with values
        fits = [match_types(task_types_M, types).any(-1).all() for types in expert_types]
        fits += [] if membership.started_samples is None else [membership.started_samples == M]
        for each in fits:
            torch._assert_async(each, "task_types do not fit the samples or the experts; call the model uncompiled")
        return
    if membership.started_samples is not None and (started := int(membership.started_samples)) != M:
        B, S = membership.shape
        raise ValueError(
            f"task_types must hold one type for each sample; got {M} types, while position_ids start {started} samples "
            f"in the B={B} rows of S={S} tokens. Let position_ids count 0, 1, 2, … from the start of each sample."
        )
    for types in expert_types:
        unknown = sorted(set(task_types_M.tolist()) - set(types))
        if unknown:
            raise ValueError(
                f"task_types has {unknown[0]}, which is the type of no expert; the experts have types "
                f"{sorted(set(types))}. Correct the task_type of the data, or set expert_types."
            )


class ForwardPass:
    """The gates of the adapted layers in one forward pass of a model, which may be within that of another.

    Only the gates are stored. A computation here would save tensors for backward that the recomputation of a
    checkpointed layer does not save, and checkpointing would fail.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.membership: Membership | None = None  # None where the batch has no task types
        self.task_types_M: Tensor | None = None
        self.gates: dict[str, dict[str, Tensor]] = {}  # [B, S, E] or [B·S, E] by adapter and name of the layer
        self.without_gradient: list[str] = []  # layers whose router is to be trained, and whose gates carry no gradient

    def add(self, adapter_name: str, layer: str, gates: Tensor, router: Tensor) -> None:
        """Add the gates of one layer."""
        if self.membership is None:
            return
        if not self.membership.covers(gates):
            raise ValueError(
                f"{self.membership.token_mismatch_message(layer, gates)}: the constraint needs layers that see each "
                "token once, row by row. Name it in exclude_modules, or give no task_types."
            )
        by_layer = self.gates.setdefault(adapter_name, {})
        if layer in by_layer:
            raise ValueError(
                f"{layer or 'a layer'} was called twice in one forward pass, as the shared layers of ALBERT are. Name "
                "it in exclude_modules, or give no task_types and set blc_weight=0."
            )
        by_layer[layer] = gates
        if router.requires_grad and not gates.requires_grad:
            self.without_gradient.append(layer)


class _ThreadState(threading.local):
    """The forward passes of a thread, the innermost last, and the lists of the `collect_aux_loss` around it.

    Both are lists: after a graph break torch.compile keeps changes of a list, but loses those of an attribute.
    """

    def __init__(self) -> None:
        self.passes: list[ForwardPass] = []
        self.collected: list[list[Tensor]] = []


thread_state = _ThreadState()


def open_pass(model: nn.Module) -> ForwardPass:
    """Open the pass of a model's forward."""
    close_pass(model)  # one that an interrupt has left
    thread_state.passes.append(ForwardPass(model))
    return thread_state.passes[-1]


def close_pass(model: nn.Module) -> ForwardPass | None:
    """Close the pass of a model's forward and return it; None if the forward failed before it opened one."""
    if not any(each.model is model for each in thread_state.passes):
        return None
    while (closed := thread_state.passes.pop()).model is not model:  # a nested one that an interrupt has left
        pass
    return closed


@contextmanager
def collect_aux_loss() -> Iterator[list[Tensor]]:
    """Collect the weighted constraint of each training forward in this thread, instead of adding it to the loss.

    For a loss that is computed from something else than `outputs.loss`: yields a list to which each forward with task
    types appends a scalar, before its share of the step.
    """
    thread_state.collected.append([])
    try:
        yield thread_state.collected[-1]
    finally:
        thread_state.collected.pop()
