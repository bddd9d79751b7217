"""What is asked: rows of the data format with what only an evaluation needs, and sentences to be finished.

A row as the training has it may also have `choices`, among which the likelihood of each picks one, and `answers`, which
are accepted beside `output`. Instead of an instruction a row may have a `prompt` and its `answer`, as the probes of
`loramoe.recall` do: a sentence that the model should finish, without any template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from loramoe.data.formats import SampleReader, seen, task_type_problem, text_problem

_READER: Final = SampleReader("loramoe", default_task_type=0)


@dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
        instruction: What to do, or the question; of a cloze, the beginning of the sentence.
        input: The text to do it with, `""` if there is none.
        output: The answer whose likelihood is told.
        answers: All accepted answers, `output` first.
        choices: What to choose from, `output` among it; empty where nothing is to be chosen.
        task_type: Which kind of task it is; None where the file does not say.
        cloze: Whether this is a sentence to be finished, and no instruction.
        where: Its place in the file, such as `row 3`.
    """

    instruction: str
    input: str
    output: str
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    task_type: int | None
    cloze: bool = False
    where: str = ""

    @property
    def candidates(self) -> tuple[str, ...]:
        """The texts whose likelihood is asked for: the choices, or the output alone."""
        return self.choices or (self.output,)


def check_example(value: object) -> Example | list[str]:
    """Checks what a file says is a question.

    Args:
        value: A value of a file, or `Unparsable`.

    Returns:
        The question, or what is wrong with it, to be read after the place.
    """
    if isinstance(value, dict) and "prompt" in value and "instruction" not in value:
        return _check_cloze(value)
    sample = _READER(value)
    if isinstance(sample, list):
        return sample
    assert isinstance(value, dict)  # or else the reader had objected
    lists = _lists(value, sample.output)
    if isinstance(lists, list):
        return lists
    task_type = None if value.get("task_type") is None else sample.task_type
    return Example(sample.instruction, sample.input, sample.output, **lists, task_type=task_type)


def _check_cloze(value: Mapping[str, Any]) -> Example | list[str]:
    checks = {name: text_problem(value, name) for name in ("prompt", "answer")}
    checks["task_type"] = task_type_problem(value["task_type"]) if "task_type" in value else None
    if problems := _told(checks):
        return problems
    lists = _lists(value, value["answer"])
    if isinstance(lists, list):
        return lists
    texts = {"instruction": value["prompt"], "input": "", "output": value["answer"]}
    return Example(**texts, **lists, task_type=value.get("task_type"), cloze=True)


def _lists(value: Mapping[str, Any], output: str) -> dict[str, Any] | list[str]:
    """The choices and all accepted answers, or what is wrong with them."""
    if problems := _told({name: _list_problem(value, name) for name in ("choices", "answers")}):
        return problems
    choices, answers = (tuple(value.get(name, ())) for name in ("choices", "answers"))
    if choices and (output not in choices or len({text.strip() for text in choices}) < max(2, len(choices))):
        expected = f"two or more texts, no two of them equal once stripped, one of them the answer {seen(output)}"
        return _told({"choices": f"expected {expected}; got {seen(list(choices))}. Correct it."})
    return {"choices": choices, "answers": tuple(dict.fromkeys((output, *answers)))}


def _list_problem(value: Mapping[str, Any], name: str) -> str | None:
    texts = value.get(name, [])
    if isinstance(texts, list) and all(text_problem({name: text}, name) is None for text in texts):
        return None
    return f"expected a list of texts, none blank, got {seen(texts)}. Correct it, or leave it out."


def _told(checks: Mapping[str, str | None]) -> list[str]:
    return [f", field {name!r}: {problem}" for name, problem in checks.items() if problem]
