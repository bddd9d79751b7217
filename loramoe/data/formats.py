"""From a value of a data file to a sample: a conversation and its task type.

`loramoe` and `alpaca` samples have one question and one answer (`instruction`, `input`, `output`); `messages` (OpenAI)
and `sharegpt` (`conversations`) samples have turns. The format is recognised by the fields, or named.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

FORMATS: Final = ("auto", "loramoe", "alpaca", "messages", "sharegpt")
COLUMNS: Final = ("instruction", "input", "output", "system", "messages", "conversations", "task_type")
"""The fields that a column map may give other names to."""

_ROLES: Final = {"system": "system", "user": "user", "human": "user"}
_ROLES.update(dict.fromkeys(("assistant", "gpt", "chatgpt", "model"), "assistant"))
_TURNS: Final = {"messages": "messages", "sharegpt": "conversations"}
_FORMAT_OF: Final = {"messages": "messages", "conversations": "sharegpt", "instruction": "alpaca", "output": "alpaca"}


class Message(TypedDict):
    """One turn of a conversation; the role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Sample:
    """A checked sample: at most one system prompt, then user and assistant by turns."""

    messages: list[Message]
    task_type: int

    @property
    def output(self) -> str:
        """The last answer."""
        return self.messages[-1]["content"]


@dataclass(frozen=True, kw_only=True)
class SampleReader:
    """Makes samples of the values of one data set."""

    format: str = "auto"  # one of FORMATS
    columns: Mapping[str, str] | None = None  # our name of a field → the name that the data has for it
    task_type: int | None = None  # type of every sample, whatever the samples have
    default_task_type: int | None = None  # type of the samples that have none of their own

    def __call__(self, value: object, task_types: Collection[int] | None = None) -> Sample | list[str]:
        """Makes a sample of a value, or lists its problems; each continues a sentence that begins with the place.

        `task_types` are the types of the experts; None accepts any integer.
        """
        if isinstance(value, ValueError):  # what a file has instead of a value
            return [str(value)]
        if not isinstance(value, Mapping):
            return [f": expected an object such as {{'instruction': …, 'output': …}}, got {seen(value)}. Write one."]
        names = {name: (self.columns or {}).get(name, name) for name in COLUMNS}
        fields: dict[str, Any] = {name: value.get(column) for name, column in names.items()}
        known = next((kind for name, kind in _FORMAT_OF.items() if fields[name] is not None), "")
        kind = known if self.format == "auto" else self.format
        if not kind:
            fix = "Name them: columns: {instruction: question, output: answer}."
            return [f": the fields {reprlib.repr(list(value))} are of no known format. {fix}"]
        types = (self.task_type, fields["task_type"], self.default_task_type)
        task_type = next((one for one in types if one is not None), None)
        problems = {"task_type": _task_type_problem(task_type, task_types)}
        problems["system"] = text_problem(value, names["system"], required=False)
        messages = [Message(role="system", content=fields["system"])] if fields["system"] else []
        if turns := _TURNS.get(kind):
            try:
                messages = _in_order(messages + _read_turns(fields[turns]))
            except ValueError as error:
                problems[turns] = str(error)
        else:
            for name in ("instruction", "input", "output"):
                problems[name] = text_problem(value, names[name], required=name != "input")
            messages += conversation(fields["instruction"], fields["input"], fields["output"])
        found = [f", field {names[name]!r}: {problem}" for name, problem in problems.items() if problem]
        return found or Sample(messages, _integer(task_type) or 0)


def conversation(instruction: str, input: str | None, output: str) -> list[Message]:
    """Makes a conversation of one question, its input, which may be empty, and its answer."""
    question = f"{instruction}\n{input}" if input else instruction
    return [Message(role="user", content=question), Message(role="assistant", content=output)]


def text_problem(value: Mapping[str, object], name: str, required: bool = True) -> str | None:
    """What is wrong with a text, None if nothing is; if not required, null and a missing field are empty texts."""
    text = value.get(name)
    if text is None and not required:
        return None
    if text is None:
        there = reprlib.repr([name for name, content in value.items() if content is not None])
        return f"missing; the sample has {there}. Add it, or name its column in `columns`."
    if not isinstance(text, str):
        return f"expected text, got {seen(text)}. Write it in quotes."
    if required and not text.strip():
        return f"expected some text, got {seen(text)}. Fill it in, or remove the sample."
    if half := re.search("[\ud800-\udfff]", text):
        return f"expected Unicode text, got half of a surrogate pair ({half[0]!r}). Remove it."
    return None


def _task_type_problem(value: object, task_types: Collection[int] | None) -> str | None:
    number = _integer(value)
    if value is None:
        fix = "Add it, give the data set one, as in `{path: FILE, task_type: 1}`, or set default_task_type."
        return f"missing, and its data set has none. {fix}"
    if number is None:
        return f"expected an integer, got {seen(value)}. Write a number such as 0 or 1."
    if task_types is not None and number not in task_types:
        known = ", ".join(map(str, sorted(set(task_types))))
        return f"got {number}, but the experts have the types {known}. Correct it, or add {number} to expert_types."
    return None


def _integer(value: object) -> int | None:
    """Reads an integer of at most 64 bits; CSV has digits in text, and a column with gaps has 1.0."""
    digits = re.fullmatch(r"(-?\d{1,18})(\.0)?", str(value).strip())
    return int(digits[1]) if digits else None


def seen(value: object) -> str:
    """A value, shortened, and its type."""
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def _read_turns(turns: Any) -> list[Message]:
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise ValueError(f"expected a list of turns, got {seen(turns)}.")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping):
            raise ValueError(f"turn {number}: expected an object with role and content, got {seen(turn)}. Write one.")
        speaker, text = ("role", "content") if turn.get("role") is not None else ("from", "value")
        role, content = _ROLES.get(str(turn.get(speaker))), turn.get(text)
        if role is None:
            raise ValueError(f"turn {number}: expected one of {', '.join(_ROLES)}; got {seen(turn.get(speaker))}.")
        if isinstance(content, Sequence) and all(isinstance(p, Mapping) and "text" in p for p in content):
            content = "".join(str(part["text"]) for part in content)
        if problem := text_problem({text: content}, text, required=role != "system"):
            raise ValueError(f"turn {number}: {text}: {problem}")
        messages.append(Message(role=role, content=content or ""))
    return messages


def _in_order(messages: list[Message]) -> list[Message]:
    """Checks the order of turns; drops an empty system prompt, and a last question, as it has no answer to learn."""
    messages = [message for message in messages if message["content"]]
    if messages and messages[-1]["role"] == "user":
        messages.pop()
    roles = [message["role"] for message in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        order = ", ".join(roles) or "no answer"
        raise ValueError(f"expected user and assistant by turns, after at most one system prompt; got {order}.")
    return messages
