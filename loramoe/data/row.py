"""A row of the data: its fields, and what is wrong with a value that should be one."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from typing import Any, TypedDict

from loramoe.data.parse import Unparsable

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class Row(TypedDict):
    """One checked row of a dataset.

    Attributes:
        instruction: What the user asks; never blank.
        input: The text that the instruction is about, `""` if there is none.
        output: The answer to learn; never blank.
        task_type: Which kind of task the row is, as the balancing constraint knows it (int64).
    """

    instruction: str
    input: str
    output: str
    task_type: int


def to_row(value: Mapping[str, Any]) -> Row:
    """Takes the fields of a row from a value that was checked."""
    return Row(
        instruction=value["instruction"],
        input=value.get("input", ""),
        output=value["output"],
        task_type=value["task_type"],
    )


def check_row(value: object, task_types: Collection[int] | None = None) -> Row | list[str]:
    """Checks what a file says is a row.

    Args:
        value: A value of a file, or `Unparsable`.
        task_types: The task types that the experts have; None accepts any integer.

    Returns:
        The row, or what is wrong with it, to be read after the place.
    """
    if isinstance(value, Unparsable):
        return [value.problem]
    if not isinstance(value, dict):
        return [f": expected an object with instruction, input, output and task_type, got {seen(value)}. Write one."]
    checks = {
        "instruction": text_problem(value, "instruction", required=True),
        "input": text_problem(value, "input", required=False),
        "output": text_problem(value, "output", required=True),
        "task_type": task_type_problem(value, task_types),
    }
    problems = [f", field {name!r}: {problem}" for name, problem in checks.items() if problem]
    return problems or to_row(value)


def text_problem(row: Mapping[str, object], name: str, required: bool = True) -> str | None:
    """Says what is wrong with a field that should be a text, not blank if it is required; None if nothing is."""
    if name not in row:
        return _missing(row) if required else None
    text = row[name]
    if not isinstance(text, str):
        fix = "Write it in quotes." if required else "Write it in quotes, or leave the field out if there is no input."
        return f"expected text, got {seen(text)}. {fix}"
    if required and not text.strip():
        return f"expected some text, got {seen(text)}. Fill it in, or remove the row."
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"expected Unicode text, got half of a surrogate pair ({text[error.start]!r}). Remove it."
    return None


def task_type_problem(row: Mapping[str, object], task_types: Collection[int] | None = None) -> str | None:
    """Says what is wrong with a row's task type; None if nothing is."""
    if "task_type" not in row:
        return _missing(row)
    value = row["task_type"]
    if not isinstance(value, int) or isinstance(value, bool):
        return f"expected an integer, got {seen(value)}. Write a number without quotes or point, such as 0 or 1."
    if not INT64_MIN <= value <= INT64_MAX:
        return f"expected an integer of 64 bits, got {seen(value)}. Write a smaller number, such as 0 or 1."
    if task_types is not None and value not in task_types:
        known = ", ".join(map(str, sorted(set(task_types))))
        return f"got {value}, but the experts have the types {known}. Correct it, or add type {value} to expert_types."
    return None


def _missing(row: Mapping[str, object]) -> str:
    return f"missing; the row has {reprlib.repr(list(row))}. Add it."


def seen(value: object) -> str:
    """A value, shortened, and its type."""
    return f"{reprlib.repr(value)} ({type(value).__name__})"
