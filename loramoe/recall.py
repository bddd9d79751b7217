"""Recall of known facts: does the model still finish the sentences that it could finish before the training?

A probe is a prompt and its answer. The model continues the prompt greedily; the probe counts as recalled where the
continuation starts with the answer, and the answer's last word ends there: "teacher" is not "tea".

    python -m loramoe.recall --model BASE [--adapter DIR] --file recall.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from loramoe.data import choose_prompt_format, get_template
from loramoe.decoding import decode
from loramoe.training.flag_values import positive

SPACELESS = r"[\u3040-\u30ff\u3400-\u9fff]"
"""A character of Chinese or Japanese, which do not set words apart: any other may follow."""

# A letter or digit of a script that does.
_WORD = rf"(?!{SPACELESS})\w"


@dataclass(frozen=True)
class Probe:
    """One fact: the model should continue `prompt` with `answer`."""

    prompt: str
    answer: str


def read_probes(file: str | os.PathLike[str]) -> list[Probe]:
    """Reads probes from a JSON list of {"prompt", "answer"}.

    Args:
        file: The JSON file.

    Returns:
        The probes, in order; at least one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON, not a list, empty, or an entry lacks a text.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file of recall probes at {path} (looked in {Path.cwd()}). Correct the path.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}). Repair it.") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path}: expected a list of probes that is not empty, [{{"prompt": …, "answer": …}}, …].')
    for number, entry in enumerate(entries, start=1):
        if not _is_probe(entry):
            raise ValueError(
                f'{path}, entry {number}: expected texts "prompt" and "answer", neither blank; got {entry!r}.'
            )
    return [Probe(entry["prompt"], entry["answer"]) for entry in entries]


def _is_probe(entry: object) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(name), str) and entry[name].strip() for name in ("prompt", "answer")
    )


def recall(
    model: Any,
    tokenizer: Any,
    probes: Sequence[Probe],
    batch_size: int = 32,
    progress: bool = True,
    end_ids: Sequence[int] = (),
) -> list[bool]:
    """Asks the model for every probe.

    Args:
        model: A causal language model, with or without an adapter.
        tokenizer: Its tokenizer.
        probes: What to ask.
        batch_size: Probes that are continued at once.
        progress: Show a progress bar.
        end_ids: Tokens that ended an answer in training, see `decode`.

    Returns:
        For each probe, whether the greedy continuation starts with the answer (see `answers`).
    """
    hits = []
    training = model.training
    model.eval()
    try:
        for start in tqdm(range(0, len(probes), batch_size), desc="recall", disable=not progress, leave=False):
            batch = probes[start : start + batch_size]
            enough = longest_answer(tokenizer, [p.answer for p in batch])
            texts = continue_greedily(model, tokenizer, [p.prompt for p in batch], enough, end_ids)
            hits += [answers(text, p.answer) for text, p in zip(texts, batch, strict=True)]
    finally:
        model.train(training)
    return hits


def answers(text: str, answer: str) -> bool:
    """Whether a text starts with an answer that ends where a word ends.

    Args:
        text: What the model said; spaces around it do not count.
        answer: What it should say; spaces around it do not count.

    Returns:
        True for "tea, thanks" where the answer is "tea"; False for "teacher".
    """
    return re.match(rf"{re.escape(answer.strip())}(?!(?<={_WORD}){_WORD})", text.strip()) is not None


def longest_answer(tokenizer: Any, answers: Sequence[str]) -> int:
    """The number of tokens that is enough to tell whether any of some answers is said."""
    ids = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    return max(map(len, ids)) + 2  # a word may be cut otherwise in context than alone


def continue_greedily(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, end_ids: Sequence[int] = ()
) -> list[str]:
    """Continues prompts of different lengths in one batch.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: Texts to continue, taken as they are.
        max_new_tokens: Longest continuation, in tokens.
        end_ids: Tokens that ended an answer in training, see `decode`.

    Returns:
        The continuations without their prompts and without special tokens.
    """
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    return decode(model, tokenizer, ids, max_new_tokens, end_ids=end_ids)


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a text to continue.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The text.

    Returns:
        What the tokenizer makes of it, special tokens in front included, without an end-of-sequence token behind.
    """
    ids = list(tokenizer(prompt)["input_ids"])
    return ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids


def main(argv: list[str] | None = None) -> None:
    """Prints the recall of a base model, or of an adapter on it."""
    from loramoe.loading import load

    parser = argparse.ArgumentParser(prog="python -m loramoe.recall", description="Recall of known facts.")
    parser.add_argument("--model", help="base model; default: the one that the adapter was trained on")
    parser.add_argument("--adapter", help="adapter folder; default: the base model alone")
    parser.add_argument("--file", required=True, help='JSON list of {"prompt", "answer"}')
    parser.add_argument("--batch_size", type=positive, default=32, help="facts that are asked at once")
    arguments = parser.parse_args(argv)
    try:
        probes = read_probes(arguments.file)
        template = choose_prompt_format(None, [arguments.adapter] if arguments.adapter else []).template
        model, tokenizer = load(arguments.model, arguments.adapter)
        end_ids = get_template(template, tokenizer).end_ids if template == "chat" else ()
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    hits = recall(model, tokenizer, probes, arguments.batch_size, end_ids=end_ids)
    print(f"recall {sum(hits) / len(hits):.4f} ({sum(hits)} of {len(hits)})")


if __name__ == "__main__":
    main()
