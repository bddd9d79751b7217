"""From questions to token ids: a prompt, and what might follow it.

An instruction is laid out by the template of the training, its end token included, so that a perplexity here is the one
that the training told. A cloze is taken as it stands: its answers follow after a space, and no end token follows them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from loramoe.data import PromptTemplate, TemplateError, conversation
from loramoe.evaluation.example import Example
from loramoe.recall import SPACELESS, prompt_ids


@dataclass(frozen=True)
class Request:
    """One question as the model gets it.

    Attributes:
        question: Token ids from which an answer is generated.
        prompt: Those that all candidates begin with, at least one; the question, unless a tokenizer joins its end with
            what follows.
        targets: Token ids of each candidate as they follow the prompt, at least one.
    """

    question: list[int]
    prompt: list[int]
    targets: list[list[int]]


def encode(examples: Sequence[Example], template: PromptTemplate, tokenizer: Any) -> list[Request]:
    """Makes requests of questions.

    Args:
        examples: The questions.
        template: The layout of instructions.
        tokenizer: The model's tokenizer.

    Returns:
        A request for each question.

    Raises:
        TemplateError: If a chat template cannot render a question; names its place.
    """
    return [_finish(e, tokenizer) if e.cloze else _answer(e, template) for e in examples]


def _answer(example: Example, template: PromptTemplate) -> Request:
    prompt = example.instruction, example.input
    encoded = []
    for one in template.encode([conversation(*prompt, text) for text in example.candidates]):
        if isinstance(one, TemplateError):
            raise TemplateError(f"{example.where}: {one}" if example.where else str(one))
        encoded.append(one)
    return Request(encoded[0].prompt, encoded[0].prompt, [one.target for one in encoded])


def _finish(example: Example, tokenizer: Any) -> Request:
    question = prompt_ids(tokenizer, example.instruction)
    wholes = [prompt_ids(tokenizer, joined(example.instruction, text)) for text in example.candidates]
    shared = _shared([question, *(whole[:-1] for whole in wholes)])
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else (tokenizer.eos_token_id or 0)
    return Request(question, wholes[0][:shared] or [start], [whole[shared:] for whole in wholes])


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """The number of ids that all rows begin with."""
    columns = zip(*rows, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def joined(prompt: str, answer: str) -> str:
    """Puts an answer behind the prompt of a cloze: after one space, but in scripts that have none after nothing.

    Args:
        prompt: The beginning of a sentence; spaces behind it do not count.
        answer: What follows; spaces around it do not count.

    Returns:
        Both together.
    """
    prompt, answer = prompt.rstrip(), answer.strip()
    together = re.search(f"{SPACELESS}$", prompt) or re.match(SPACELESS, answer)
    return prompt + answer if together else f"{prompt} {answer}"
