"""Files of questions: samples of the training's formats, and sentences to finish (clozes).

A sample may also have `choices`, among which the model picks the likeliest, and `answers`, which are accepted beside
its own. Instead of an instruction and an output, a cloze has a `prompt` and an `answer`; no template is applied to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from loramoe.data import data_files
from loramoe.data.formats import SampleReader, seen, text_problem
from loramoe.data.read import checked, locate

Question = dict[str, Any]
"""`messages`, up to the question; `answers`, its own first; `choices`; `task_type`, or None; `cloze`; `where`."""

_SAMPLE: Final = SampleReader(default_task_type=0)
_CLOZE: Final = SampleReader(
    format="alpaca", columns={"instruction": "prompt", "output": "answer"}, default_task_type=0
)


def read_questions(path: str | os.PathLike[str]) -> list[Question]:
    """Reads the questions of a file or folder.

    Raises:
        DatasetError: If there is nothing at the path, or questions are faulty; up to ten faults are named.
    """
    return [{**question, "where": where} for where, question in checked(locate(data_files(path)), check_question)]


def check_question(value: object) -> Question | list[str]:
    """Makes a question of a value of a file, or lists what is wrong with it, to be read after its place."""
    fields: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    cloze = "prompt" in fields and not {"instruction", "messages", "conversations"} & fields.keys()
    sample = (_CLOZE if cloze else _SAMPLE)(value)
    if isinstance(sample, list):
        return sample
    for name in ("answers", "choices"):
        texts = fields.get(name) or []
        if not isinstance(texts, list) or any(text_problem({name: text}, name) for text in texts):
            expected = "expected a list of texts, none blank"
            return [f", field {name!r}: {expected}, got {seen(texts)}. Correct it, or leave it out."]
    answers, choices = [sample.output, *(fields.get("answers") or [])], list(fields.get("choices") or [])
    if choices and (sample.output not in choices or len(set(map(str.strip, choices))) < max(2, len(choices))):
        expected = f"two or more different texts, one of them the answer {seen(sample.output)}"
        return [f", field 'choices': expected {expected}; got {seen(choices)}. Correct it."]
    return {
        "messages": sample.messages[:-1],
        "answers": list(dict.fromkeys(answers)),
        "choices": choices,
        "task_type": None if fields.get("task_type") is None else sample.task_type,
        "cloze": cloze,
    }
