"""What a model was called with, as the constraint needs it: which tokens are real, and whose they are.

The constraint sums gates over the real tokens of each sample, so it needs the samples of a batch told apart and padding
told from text, for whatever way the call passed them: a sample in each row, with padding, or packed, several samples in
a row without padding. Of a packed batch the gates are laid out by sample again, so that all that follows is the same.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Samples:
    """The M samples of a batch of B·S tokens.

    Attributes:
        mask_MS: Which tokens of each sample are real, bool; S is the longest sample of a packed batch.
        index_MS: Where in the flattened batch each token lies, int64, and any token of the batch where the mask is
            False. None where row m of the batch is sample m.
        shape: B and S of the batch.
    """

    mask_MS: Tensor
    index_MS: Tensor | None
    shape: tuple[int, int]

    @property
    def packed(self) -> bool:
        """Whether a row holds several samples."""
        return self.index_MS is not None

    def to(self, device: torch.device) -> Samples:
        """The same on another device."""
        index_MS = None if self.index_MS is None else self.index_MS.to(device, non_blocking=True)
        return Samples(self.mask_MS.to(device, non_blocking=True), index_MS, self.shape)

    def types_present(self, task_types: Tensor) -> tuple[int, ...]:
        """The T task types that have a real token, ascending.

        Args:
            task_types: Task type of each sample, [M], integer, on the host.

        Returns:
            Without those of which the batch holds nothing but padding.
        """
        return tuple(sorted(set(task_types[self.mask_MS.any(dim=-1).cpu()].tolist())))

    def gates(self, linear: str, gates: Tensor) -> Tensor:
        """Gates of one linear by sample; some architectures flatten samples and tokens into one dimension.

        Args:
            linear: Name of the linear.
            gates: Its gates, [B, S, E] or [B·S, E].

        Returns:
            Gates [M, S, E]; what the mask leaves out is of no meaning.

        Raises:
            ValueError: If the linear saw other tokens than the batch has, or in another order.
        """
        gates_NE = by_token(gates, self.shape)
        if gates_NE is None:
            raise ValueError(
                f"{told_apart(linear, gates, self.shape)}: the constraint needs linears that see each token once, row "
                "by row. Name it in exclude_modules, or give no task_types."
            )
        if self.index_MS is not None:
            gates_NE = gates_NE.index_select(0, self.index_MS.flatten())
        return gates_NE.reshape(*self.mask_MS.shape, gates.shape[-1])


def by_token(gates: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """Gates of one linear by token: first those of the batch's first row.

    Args:
        gates: Its gates, [B, S, E] or [B·S, E], where further dimensions of size 1 change nothing; None where it was
            not called.
        shape: B and S of the batch.

    Returns:
        Gates [B·S, E]; None if the linear saw another number of tokens, or in an order that cannot be told: XLNet's
        see [S, B].
    """
    if gates is None:
        return None
    seen, B_S = ([size for size in sizes if size != 1] for sizes in (gates.shape[:-1], shape))
    return gates.reshape(-1, gates.shape[-1]) if seen in (B_S, [math.prod(B_S)]) else None


def told_apart(linear: str, gates: Tensor | None, shape: Sequence[int]) -> str:
    """What a linear saw beside what the batch has: how an error begins where `by_token` knows no answer.

    Args:
        linear: Name of the linear.
        gates: Its gates, [..., E]; None where it was not called.
        shape: B and S of the batch.
    """
    seen = [0] if gates is None else list(gates.shape[:-1])
    batch = f"{list(shape)} = {math.prod(shape)}"
    return f"{linear} saw {math.prod(seen)} tokens, the batch has {batch}, not {seen}"


def samples_of(model: nn.Module, call: Mapping[str, Any], task_types: Tensor) -> Samples:
    """Tells the samples of a batch apart, and padding from text.

    With as many task types as rows, each row is a sample. With more of them the rows are packed: a sample begins where
    `position_ids` do not go on by one.

    Args:
        model: The model that was called.
        call: What it was called with, by name: `input_ids` or `inputs_embeds`, and maybe `attention_mask`; of packed
            rows also `position_ids`.
        task_types: Task type of each sample, [M].

    Returns:
        The samples.

    Raises:
        ValueError: If samples and task types do not go together, padding cannot be told from text, or the model would
            let the samples of a packed row see each other.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"task_types are for decoder-only models; {type(model).__name__} is an encoder-decoder, whose linears see "
            "two different sequences. Leave task_types out, and set blc_weight=0."
        )
    tokens: Tensor = call["inputs_embeds"] if call.get("input_ids") is None else call["input_ids"]
    B, S = tokens.shape[:2]
    if task_types.dim() == 1 and len(task_types) > B and call.get("position_ids") is not None:
        _check_kept_apart(model, call, B)
        return _packed(call["position_ids"].expand(B, S), len(task_types))
    if len(task_types) != B:
        raise ValueError(
            f"task_types must hold one type for each of the B={B} samples; got {len(task_types)}. Where a row holds "
            "several samples, pass position_ids that restart at each of them."
        )
    _check_unpacked(call, B)
    return Samples(_real_tokens(call, B, S, tokens.device), None, (B, S))


def _check_unpacked(call: Mapping[str, Any], B: int) -> None:
    """Refuses rows that hold several samples beside one type for each row: they would count as one sample each."""
    position_ids: Tensor | None = call.get("position_ids")
    if call.get("attention_mask") is not None or position_ids is None or position_ids.dim() != 2:
        return
    if bool((position_ids.diff() < 0).any()):
        raise ValueError(
            f"position_ids restart within a row, so that it holds several samples, but task_types hold {B}, one for "
            "each row. Give one type for each sample."
        )


def _real_tokens(call: Mapping[str, Any], B: int, S: int, device: torch.device) -> Tensor:
    """Bool [B, S]; all True where no mask was given."""
    mask: Tensor | None = call.get("attention_mask")
    if mask is None:
        return torch.ones(B, S, dtype=torch.bool, device=device)
    if mask.dim() != 2:
        raise ValueError(
            f"with task_types, attention_mask must be [B, S], to tell padding from real tokens; got {list(mask.shape)}."
        )
    return mask[:, -S:].bool()  # with a KV cache the mask also covers the past


def _check_kept_apart(model: nn.Module, call: Mapping[str, Any], B: int) -> None:
    """Refuses what keeps transformers from deriving from position_ids who may see whom."""
    for name in ("attention_mask", "past_key_values"):
        if call.get(name) is not None:
            raise ValueError(
                f"rows that hold several samples need {name}=None: with it, transformers would let the samples see "
                f"each other. Leave {name} out, as loramoe.data.PackedCollator does, or give each sample a row of its "
                "own."
            )
    attention = str(getattr(getattr(model, "config", None), "_attn_implementation", None))
    if B > 1 and "flash" in attention:
        raise ValueError(
            f"{attention} tells packed samples apart in a single row only; got B={B} rows. Put all samples into one "
            "row, as loramoe.data.PackedCollator does."
        )


def _packed(position_ids_BS: Tensor, M: int) -> Samples:
    """The samples of packed rows; computed on the host, where their number is compared before the forward is queued."""
    B, S = position_ids_BS.shape
    position_ids_BS = position_ids_BS.cpu()
    begins_BS = torch.ones(B, S, dtype=torch.bool)
    begins_BS[:, 1:] = position_ids_BS.diff() != 1
    begin_M = begins_BS.flatten().nonzero().squeeze(-1)
    if len(begin_M) != M:
        raise ValueError(
            f"task_types must hold one type for each sample; got {M} types, while position_ids begin {len(begin_M)} "
            f"times in the B={B} rows of S={S} tokens. Let position_ids count 0, 1, 2, … from the start of each sample."
        )
    length_M = torch.cat([begin_M, torch.tensor([B * S])]).diff()
    place_S = torch.arange(int(length_M.max()))
    index_MS = (begin_M[:, None] + place_S).clamp(max=B * S - 1)  # past its end, a sample's row shows the next ones
    return Samples(place_S < length_M[:, None], index_MS, (B, S))
