"""What is asked: a prompt with candidates, one of which is right; or with one answer that must come word for word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from loramoe.data import ReleaseTemplate, conversation

Measure = Literal["total", "per_token", "gain", "begins", "exact"]
"""How an item is judged.

`total`, `per_token`, `gain`: of the candidates the right one must have the highest log-likelihood; or the highest for
each of its tokens; or that to which the question adds most, compared with a prompt without a question. `begins`: each
token of the right candidate must be the likeliest, given those before it, and of no other candidate all may be: greedy
decoding would begin with the right one, and not go on to another. `exact`: each token of the one answer must be the
likeliest, and so must the end of the sequence after it, so that greedy decoding would say just this."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        prompt: The instruction of a row; of a cloze, the text to be continued.
        candidates: Answers to choose from, or the only one.
        right: Which candidate is right.
        input: The input of a row.
        given: How every answer begins; the model reads it, and is not asked for it.
        unasked: The prompt without its question, for measures of gain.
        cloze: Whether the prompt is plain text, which an answer continues after a space, and not an instruction.
    """

    prompt: str
    candidates: tuple[str, ...]
    right: int = 0
    input: str = ""
    given: str = ""
    unasked: str = ""
    cloze: bool = False


class Request(NamedTuple):
    """An item in token ids: what is read, and what may follow."""

    prompt: list[int]
    candidates: list[list[int]]


def requests(items: Sequence[Item], tokenizer: Any, ended: bool) -> list[Request]:
    """Makes token ids of items, laid out as rows of training are, or as plain text if they are clozes.

    Args:
        items: The items.
        tokenizer: The model's tokenizer.
        ended: Whether the end-of-sequence token belongs to each answer.

    Returns:
        A request for each item. What is given, or else what all candidates begin with, is part of its prompt: it
        tells nothing.
    """
    template = ReleaseTemplate(tokenizer)
    return [_cloze(item, tokenizer) if item.cloze else _row(item, template, ended) for item in items]


def unasked(items: Sequence[Item], tokenizer: Any) -> list[Request]:
    """The same candidates behind a prompt without a question; see `Measure`."""
    return requests([replace(item, prompt=item.unasked) for item in items], tokenizer, ended=False)


def _cloze(item: Item, tokenizer: Any) -> Request:
    texts = [item.prompt, *(f"{item.prompt} {candidate}" for candidate in item.candidates)]
    prompt, *wholes = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return _divided([], wholes, None if len(wholes) > 1 else prompt)


def _row(item: Item, template: ReleaseTemplate, ended: bool) -> Request:
    outputs = [item.given + text for text in (*item.candidates, "")]
    encoded = template.encode([conversation(item.prompt, item.input, output) for output in outputs])
    *wholes, given = [one.target if ended else one.target[:-1] for one in encoded]
    asked = item.given or len(wholes) == 1
    return _divided(encoded[0].prompt, wholes, (given[:-1] if ended else given) if asked else None)


def _divided(prompt: list[int], wholes: list[list[int]], given: list[int] | None) -> Request:
    """Moves to the prompt what all answers begin with, and no more than is given if that is said."""
    others = wholes if given is None else [*wholes, given]
    # Every candidate keeps a token at least, to be asked for.
    columns = zip(*others, *(whole[:-1] for whole in wholes), strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return Request(prompt + wholes[0][:shared], [whole[shared:] for whole in wholes])
