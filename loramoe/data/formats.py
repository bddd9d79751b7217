"""From a value of a data file to a sample: a conversation and its task type.

Four formats are known. `loramoe` and `alpaca` have one question and one answer (`instruction`, `input`, `output`);
`messages` (OpenAI) and `sharegpt` (`conversations`) have any number of turns. Which one a value has is recognised by
its fields, or named. A column map gives our names to columns that are called otherwise.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from loramoe.data.rendering import Message, user_text

FORMATS: Final = ("auto", "loramoe", "alpaca", "messages", "sharegpt")
COLUMNS: Final = ("instruction", "input", "output", "system", "messages", "conversations", "task_type")
"""The names of fields that a column map may give to others."""

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
_TURNS: Final = {"messages": "messages", "sharegpt": "conversations"}
_ROLES: Final[Mapping[object, Literal["system", "user", "assistant"]]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_TELLING: Final = ("instruction", "output", "messages", "conversations")
_KNOWN: Final = "instruction, input, output; or messages; or conversations"
_EXAMPLE: Final = "columns: {instruction: question, output: answer}"
_NO_TYPE: Final = (
    "missing, and its data set has none. Give every sample of a data set its type, as in `{path: FILE, task_type: 1}`, "
    "or the samples without one, as in `default_task_type=1`; or add the field."
)


@dataclass(frozen=True)
class Sample:
    """A checked sample.

    Attributes:
        messages: The conversation: at most one system prompt, then a user and an assistant by turns.
        task_type: Which kind of task it is, as the balancing constraint knows it (int64).
        input: The text that a single question is about, `""` if there is none; it ends the user's turn.
    """

    messages: list[Message]
    task_type: int
    input: str = ""

    @property
    def instruction(self) -> str:
        """The question of a single-turn sample, without its input."""
        text = next(turn["content"] for turn in self.messages if turn["role"] == "user")
        return text.removesuffix(f"\n{self.input}") if self.input else text

    @property
    def output(self) -> str:
        """The last answer."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class SampleReader:
    """Makes samples of the values of one data set.

    Attributes:
        format: One of FORMATS.
        columns: Our name of a field → the name that the data has for it.
        task_type: Type of every sample; None where samples have their own.
        default_task_type: Type of the samples that have none of their own.
        task_types: The types that the experts have; None accepts any.
    """

    format: str = "auto"
    columns: Mapping[str, str] | None = None
    task_type: int | None = None
    default_task_type: int | None = None
    task_types: Collection[int] | None = None

    def __call__(self, value: object) -> Sample | list[str]:
        """Makes a sample of a value, or says what is wrong with it, to be read after its place."""
        if isinstance(value, Unparsable):
            return [value.problem]
        if not isinstance(value, Mapping):
            return [f": expected an object such as {{'instruction': …, 'output': …}}, got {seen(value)}. Write one."]
        if self.format == "auto" and not any(value.get(self._column(name)) is not None for name in _TELLING):
            there = reprlib.repr(list(value))
            return [f": the fields {there} are of no known format ({_KNOWN}). Name columns, as in {_EXAMPLE}."]
        problems: dict[str, str] = {}
        task_type = self._task_type(value, problems)
        kind = self._format(value)
        if kind in _TURNS:
            messages, text = self._conversation(value, _TURNS[kind], problems), ""
        else:
            messages, text = self._question(value, problems)
        if problems:
            return [f", field {name!r}: {problem}" for name, problem in problems.items()]
        return Sample(messages, task_type, text)

    def used_columns(self) -> set[str]:
        """Names of all columns that samples may be made of."""
        return {self._column(name) for name in COLUMNS}

    def _column(self, name: str) -> str:
        return (self.columns or {}).get(name, name)

    def _format(self, value: Mapping[str, Any]) -> str:
        if self.format != "auto":
            return self.format
        present = [kind for kind, name in _TURNS.items() if value.get(self._column(name)) is not None]
        return present[0] if present else "alpaca"

    def _task_type(self, value: Mapping[str, Any], problems: dict[str, str]) -> int:
        name = self._column("task_type")
        found = self.task_type if self.task_type is not None else value.get(name)
        if found is None:
            found = self.default_task_type
        if found is None:
            problems[name] = _NO_TYPE
            return 0
        number = _integer(found)
        if problem := task_type_problem(found, self.task_types):
            problems[name] = problem
        return number if number is not None else 0

    def _question(self, value: Mapping[str, Any], problems: dict[str, str]) -> tuple[list[Message], str]:
        texts = {}
        for name in ("system", "instruction", "input", "output"):
            column = self._column(name)
            if problem := text_problem(value, column, required=name in ("instruction", "output")):
                problems[column] = problem
            texts[name] = value.get(column) or ""
        user = user_text(texts["instruction"], texts["input"])
        system = [Message(role="system", content=texts["system"])] if texts["system"] else []
        turn = [Message(role="user", content=user), Message(role="assistant", content=texts["output"])]
        return system + turn, texts["input"]

    def _conversation(self, value: Mapping[str, Any], name: str, problems: dict[str, str]) -> list[Message]:
        column, system = self._column(name), self._column("system")
        turns = value.get(column)
        if problem := text_problem(value, system, required=False):
            problems[system] = problem
        if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
            problems[column] = _missing(value) if turns is None else f"expected a list of turns, got {seen(turns)}."
            return []
        messages = [_message(turn) for turn in turns]
        for number, message in enumerate(messages, start=1):
            if isinstance(message, str):
                problems[column] = f"turn {number}: {message}"
                return []
        checked = [message for message in messages if not isinstance(message, str)]
        if value.get(system):
            checked.insert(0, Message(role="system", content=value[system]))
        return _dialogue(checked, column, problems)


@dataclass(frozen=True)
class Unparsable:
    """Stands where a value should be.

    Attributes:
        problem: What is wrong and how to repair it, to be read after the place.
    """

    problem: str


def text_problem(value: Mapping[str, object], name: str, required: bool = True) -> str | None:
    """What is wrong with a text, None if nothing is; if not required, null and a missing field are empty texts."""
    text = value.get(name)
    if text is None:
        return _missing(value) if required else None
    if not isinstance(text, str):
        return f"expected text, got {seen(text)}. Write it in quotes."
    if required and not text.strip():
        return f"expected some text, got {seen(text)}. Fill it in, or remove the sample."
    return _unicode_problem(text)


def task_type_problem(value: object, task_types: Collection[int] | None = None) -> str | None:
    """What is wrong with a task type, None if nothing is; task_types are those of the experts, None accepts any."""
    number = _integer(value)
    if number is None:
        return f"expected an integer, got {seen(value)}. Write a number such as 0 or 1."
    if not INT64_MIN <= number <= INT64_MAX:
        return f"expected an integer of 64 bits, got {seen(value)}. Write a smaller number, such as 0 or 1."
    if task_types is not None and number not in task_types:
        known = ", ".join(map(str, sorted(set(task_types))))
        return f"got {number}, but the experts have the types {known}. Correct it, or add {number} to expert_types."
    return None


def seen(value: object) -> str:
    """A value, shortened, and its type."""
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def _integer(value: object) -> int | None:
    """The integer that a value stands for: also digits in text, as in CSV, and 1.0, as in columns with gaps."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = int(value)
    except (ValueError, OverflowError):  # text, not a number, infinity
        return None
    return number if isinstance(value, str) or number == value else None


def _message(turn: object) -> Message | str:
    """Makes a message of a turn in either spelling, or says what is wrong with it."""
    if not isinstance(turn, Mapping):
        return f"expected an object with role and content, got {seen(turn)}. Write one."
    role, text = ("role", "content") if turn.get("role") is not None else ("from", "value")
    if turn.get(role) not in _ROLES:
        return f"expected one of {', '.join(map(str, _ROLES))}; got {seen(turn.get(role))}. Correct it."
    content = turn.get(text)
    if isinstance(content, Sequence) and not isinstance(content, str):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            return f"expected parts of text, got {seen(content)}. Leave out images and tools."
        content = "".join(part["text"] for part in content)
    problem = text_problem({text: content}, text, required=_ROLES[turn[role]] != "system")
    return f"{text}: {problem}" if problem else Message(role=_ROLES[turn[role]], content=content or "")


def _dialogue(messages: list[Message], column: str, problems: dict[str, str]) -> list[Message]:
    """Checks the order of turns; drops an empty system prompt, and a last question, as it has no answer to learn."""
    messages = [message for message in messages if message["content"]]
    if messages and messages[-1]["role"] == "user":
        messages = messages[:-1]
    roles = [message["role"] for message in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        order = ", ".join(roles) or "no answer"
        problems[column] = (
            f"expected user and assistant by turns, after at most one system prompt; got {order}. Reorder."
        )
    return messages


def _unicode_problem(text: str) -> str | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"expected Unicode text, got half of a surrogate pair ({text[error.start]!r}). Remove it."
    return None


def _missing(value: Mapping[str, object]) -> str:
    there = [name for name, content in value.items() if content is not None]
    return f"missing; the sample has {reprlib.repr(there)}. Add it, or name its column in `columns`."
