"""Continuing prompts in batches: what answering, recall and evaluation share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from loramoe.loading import positions
from loramoe.utils import UsageError

# Against a model's own generation settings, which could change the next token.
GREEDY: Final[dict[str, Any]] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
GREEDY.update(no_repeat_ngram_size=0, **dict.fromkeys(("top_p", "top_k", "min_p", "typical_p")))


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pads rows of token ids on the left; returns the ids and the attention mask, both [B, S] int64."""
    ids = [torch.tensor(row, dtype=torch.long, device=device) for row in rows]
    mask_BS = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side="left")
    return pad_sequence(ids, batch_first=True, padding_value=pad, padding_side="left"), mask_BS


def pad_id(tokenizer: Any) -> int:
    """The id to pad with; the attention mask hides it, so that without one of its own any will do."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0))


def end_tokens(generation_config: Any, tokenizer: Any, end_ids: Sequence[int] = ()) -> list[int]:
    """The tokens that end an answer: the model's, the tokenizer's and, as `end_ids`, those of the training."""
    own = generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *end_ids, *(own if isinstance(own, list) else [own])} - {None})


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
    """Continues prompts of different lengths in one batch, up to an end token or the end of the model's positions.

    `prompts` are token ids; the texts that are returned have neither prompts nor special tokens. `temperature` 0 is
    greedy. `end_ids` are the tokens that ended an answer in training, as `PromptTemplate.end_ids`.

    Raises:
        UsageError: If a prompt fills the model's positions.
    """
    longest, most = max(map(len, prompts)), positions(model.config)
    if most is not None and longest >= most:
        raise UsageError(f"a prompt has {longest} tokens, and the model knows {most} positions. Shorten it.")
    pad, ends = pad_id(tokenizer), end_tokens(model.generation_config, tokenizer, end_ids)
    input_ids, attention_mask = pad_left(prompts, pad, model.device)
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=max_new_tokens if most is None else min(max_new_tokens, most - longest),
        pad_token_id=pad,
        eos_token_id=ends or None,
        streamer=streamer,
        **({**GREEDY, "do_sample": True, "temperature": temperature} if temperature > 0 else GREEDY),
    )
    # An end token need not be a special one; padding follows it.
    answers = [list(takewhile(lambda token: token not in ends, row)) for row in generated[:, longest:].tolist()]
    return list(tokenizer.batch_decode(answers, skip_special_tokens=True))
