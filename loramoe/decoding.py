"""Continuing prompts in batches: what answering, recall and evaluation share.

Prompts are padded on the left, so that all of them end where the first new token begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Final

import torch
from torch import Tensor

from loramoe.utils import UsageError

GREEDY: Final[dict[str, Any]] = {
    "do_sample": False,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    **dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "typical_p")),
}
"""Against a model's own settings: those would change which token comes next, or be warned about."""


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Puts rows of token ids into one batch, their ends in line.

    Args:
        rows: B rows; S is the length of the longest.
        pad: The id that fills the left.
        device: Where the batch goes.

    Returns:
        The ids and the attention mask, both [B, S] int64.
    """
    longest = max(map(len, rows))
    ids_BS = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask_BS = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids_BS, device=device), torch.tensor(mask_BS, device=device)


def pad_id(tokenizer: Any) -> int:
    """The id to pad with; the attention mask hides it, so that without one of its own any will do."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0))


@torch.inference_mode()
def decode(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    streamer: Any = None,
    end_ids: Sequence[int] = (),
) -> list[str]:
    """Continues prompts of different lengths in one batch.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer; whichever side it pads otherwise, here it pads left.
        prompts: Token ids of each prompt, at least one.
        max_new_tokens: Longest continuation, in tokens; shorter where the model's positions end.
        temperature: 0 is greedy; above, tokens are sampled.
        streamer: Shows the continuation of a single prompt while it grows.
        end_ids: Tokens that end an answer beside the model's and the tokenizer's own, as `PromptTemplate.end_ids`.

    Returns:
        The continuations without their prompts and without special tokens.

    Raises:
        UsageError: If a prompt fills the model's positions.
    """
    pad = pad_id(tokenizer)
    max_new_tokens = _room(model, max(map(len, prompts)), max_new_tokens)
    ends = _end_ids(model, tokenizer, end_ids)
    input_ids, attention_mask = pad_left(prompts, pad, model.device)
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=ends,
        streamer=streamer,
        num_beams=1,
        **({"do_sample": True, "temperature": temperature} if temperature > 0 else GREEDY),
    )
    answers = [_before_end(ids, ends or []) for ids in generated[:, input_ids.shape[1] :].tolist()]
    return list(tokenizer.batch_decode(answers, skip_special_tokens=True))


def _room(model: Any, longest: int, max_new_tokens: int) -> int:
    """How many tokens may follow the longest prompt: beyond its positions a model says anything, or fails."""
    positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return max_new_tokens
    if longest >= positions:
        raise UsageError(f"a prompt has {longest} tokens, and the model knows {positions} positions. Shorten it.")
    return min(max_new_tokens, positions - longest)


def _before_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """An answer without its end token, which need not be a special one, and without the padding behind it."""
    return list(takewhile(lambda token: token not in ends, ids))


def _end_ids(model: Any, tokenizer: Any, of_template: Sequence[int] = ()) -> list[int] | None:
    """Ends of the model's own, and those that training ends answers with, which a base model's may lack."""
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *of_template, *(own if isinstance(own, list) else [own])} - {None}
    return sorted(ends) or None
