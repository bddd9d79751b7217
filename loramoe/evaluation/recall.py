"""Recall of known facts: does the model still finish the sentences that it could finish before the training?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from loramoe.data import DatasetError
from loramoe.decoding import decode
from loramoe.evaluation.answers import starts_with
from loramoe.evaluation.questions import read_questions


class Probe(NamedTuple):
    """One fact: the model should continue `prompt` with one of `answers`."""

    prompt: str
    answers: Sequence[str]


def read_probes(file: str | os.PathLike[str]) -> list[Probe]:
    """Reads probes, {"prompt": …, "answer": …} and maybe further "answers", from a file of questions.

    Raises:
        DatasetError: If there is no such file, or a sample is not a probe; the file and the sample are named.
    """
    probes = []
    for question in read_questions(file):
        if not question["cloze"]:
            raise DatasetError(f'{question["where"]}: expected a probe with texts "prompt" and "answer". Correct it.')
        probes.append(Probe(question["messages"][0]["content"], question["answers"]))
    return probes


def recall(
    model: Any,
    tokenizer: Any,
    probes: Sequence[Probe],
    batch_size: int = 32,
    progress: bool = True,
    end_ids: Sequence[int] = (),
) -> list[bool]:
    """For each probe, whether the greedy continuation starts with an answer, which ends where a word ends.

    `end_ids` are the tokens that ended an answer in training, see `decode`.
    """
    hits, training = [], model.training
    model.eval()
    try:
        for start in tqdm(range(0, len(probes), batch_size), desc="recall", disable=not progress, leave=False):
            batch = probes[start : start + batch_size]
            prompts = [prompt_ids(tokenizer, probe.prompt) for probe in batch]
            longest = longest_answer(tokenizer, [answer for probe in batch for answer in probe.answers])
            texts = decode(model, tokenizer, prompts, longest, end_ids=end_ids)
            hits += [
                any(starts_with(text, one) for one in probe.answers) for text, probe in zip(texts, batch, strict=True)
            ]
    finally:
        model.train(training)
    return hits


def longest_answer(tokenizer: Any, answers: Sequence[str]) -> int:
    """The number of generated tokens that suffices to recognise any of some answers."""
    ids = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    return max(map(len, ids)) + 2  # a word may be cut otherwise in context than alone


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a text to continue, without the end-of-sequence token that some tokenizers append."""
    ids = list(tokenizer(prompt)["input_ids"])
    return ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids
