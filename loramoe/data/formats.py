"""From a value of a data file to a sample: a conversation and its task type.

Four formats are known. `loramoe` and `alpaca` have one question and one answer (`instruction`, `input`, `output`);
`messages` (OpenAI) and `sharegpt` (`conversations`) have any number of turns. Which one a value has is recognised by
its fields, or named. A column map gives our names to columns that are called otherwise.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypedDict

FORMATS: Final = ("auto", "loramoe", "alpaca", "messages", "sharegpt")
COLUMNS: Final = ("instruction", "input", "output", "system", "messages", "conversations", "task_type")
"""The names of fields that a column map may give to others."""

Role = Literal["system", "user", "assistant"]
_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model"), "assistant"),
}
_TURNS: Final = {"messages": "messages", "sharegpt": "conversations"}
_TELLING: Final = {"messages": "messages", "conversations": "sharegpt", "instruction": "alpaca", "output": "alpaca"}
_NO_TYPE: Final = (
    "missing, and its data set has none. Add it, give the data set one, as in `{path: FILE, task_type: 1}`, or set "
    "default_task_type."
)


_EXAMPLE: Final = "columns: {instruction: question, output: answer}"


class Message(TypedDict):
    """One turn of a conversation."""

    role: Role
    content: str


class Unparsable(NamedTuple):
    """Stands where a value should be; what is wrong is to be read after the place."""

    problem: str


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
    """Makes samples of the values of one data set; the attributes are those of `DataSource`, and the experts' types."""

    format: str = "auto"
    columns: Mapping[str, str] | None = None
    task_type: int | None = None
    default_task_type: int | None = None
    task_types: Collection[int] | None = None

    def __call__(self, value: object) -> Sample | list[str]:
        """Makes a sample of a value, or lists what is wrong with it, to be read after its place."""
        if isinstance(value, Unparsable):
            return [value.problem]
        if not isinstance(value, Mapping):
            return [f": expected an object such as {{'instruction': …, 'output': …}}, got {seen(value)}. Write one."]
        telling = [kind for name, kind in _TELLING.items() if value.get(self.column(name)) is not None]
        if self.format == "auto" and not telling:
            there = reprlib.repr(list(value))
            return [f": the fields {there} are of no known format. Name them: {_EXAMPLE}."]
        problems: dict[str, str | None] = {}
        column = self.column("task_type")
        given = (self.task_type, value.get(column), self.default_task_type)
        task_type = next((one for one in given if one is not None), None)
        problems[column] = _NO_TYPE if task_type is None else task_type_problem(task_type, self.task_types)
        kind = telling[0] if self.format == "auto" else self.format
        if kind in _TURNS:
            messages, text = self._conversation(value, _TURNS[kind], problems), ""
        else:
            messages, text = self._question(value, problems)
        found = [f", field {name!r}: {problem}" for name, problem in problems.items() if problem]
        return found or Sample(messages, int(task_type or 0), text)

    def column(self, name: str) -> str:
        """The name that the data has for one of our fields."""
        return (self.columns or {}).get(name, name)

    def _question(self, value: Mapping[str, Any], problems: dict[str, str | None]) -> tuple[list[Message], str]:
        columns = {name: self.column(name) for name in ("system", "instruction", "input", "output")}
        for name, column in columns.items():
            problems[column] = text_problem(value, column, required=name in ("instruction", "output"))
        system, instruction, text, output = (value.get(column) or "" for column in columns.values())
        first = [Message(role="system", content=system)] if system else []
        return [*first, *conversation(instruction, text, output)], text

    def _conversation(self, value: Mapping[str, Any], name: str, problems: dict[str, str | None]) -> list[Message]:
        column, system = self.column(name), self.column("system")
        turns = value.get(column)
        problems[system] = text_problem(value, system, required=False)
        if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
            problems[column] = _missing(value) if turns is None else f"expected a list of turns, got {seen(turns)}."
            return []
        first = [Message(role="system", content=value[system])] if value.get(system) else []
        try:
            return _in_order(first + [_message(number, turn) for number, turn in enumerate(turns, start=1)])
        except _TurnError as error:
            problems[column] = str(error)
            return []


class _TurnError(ValueError):
    """What is wrong with a conversation."""


def user_text(instruction: str, input: str) -> str:
    """The turn of the user in a sample of one question."""
    return f"{instruction}\n{input}" if input else instruction


def conversation(instruction: str, input: str, output: str) -> list[Message]:
    """Makes a conversation of one question, its input, which may be empty, and its answer."""
    return [Message(role="user", content=user_text(instruction, input)), Message(role="assistant", content=output)]


def text_problem(value: Mapping[str, object], name: str, required: bool = True) -> str | None:
    """What is wrong with a text, None if nothing is; if not required, null and a missing field are empty texts."""
    text = value.get(name)
    if text is None:
        return _missing(value) if required else None
    if not isinstance(text, str):
        return f"expected text, got {seen(text)}. Write it in quotes."
    if required and not text.strip():
        return f"expected some text, got {seen(text)}. Fill it in, or remove the sample."
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"expected Unicode text, got half of a surrogate pair ({text[error.start]!r}). Remove it."
    return None


def task_type_problem(value: object, task_types: Collection[int] | None = None) -> str | None:
    """What is wrong with a task type, None if nothing is; task_types are those of the experts, None accepts any.

    Digits in text are integers too, as CSV has nothing else, and so is 1.0, as in columns with gaps.
    """
    try:
        number = int(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):  # text, not a number, infinity
        number = None
    if number is None or (isinstance(value, float) and number != value):
        return f"expected an integer, got {seen(value)}. Write a number such as 0 or 1."
    if not -(2**63) <= number < 2**63:
        return f"expected an integer of 64 bits, got {seen(value)}. Write a smaller number, such as 0 or 1."
    if task_types is not None and number not in task_types:
        known = ", ".join(map(str, sorted(set(task_types))))
        return f"got {number}, but the experts have the types {known}. Correct it, or add {number} to expert_types."
    return None


def seen(value: object) -> str:
    """A value, shortened, and its type."""
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def _missing(value: Mapping[str, object]) -> str:
    there = [name for name, content in value.items() if content is not None]
    return f"missing; the sample has {reprlib.repr(there)}. Add it, or name its column in `columns`."


def _message(number: int, turn: object) -> Message:
    """Makes a message of a turn in either spelling."""
    if not isinstance(turn, Mapping):
        raise _TurnError(f"turn {number}: expected an object with role and content, got {seen(turn)}. Write one.")
    speaker, text = ("role", "content") if turn.get("role") is not None else ("from", "value")
    role, content = _ROLES.get(str(turn.get(speaker))), turn.get(text)
    if role is None:
        raise _TurnError(f"turn {number}: expected one of {', '.join(_ROLES)}; got {seen(turn.get(speaker))}.")
    if isinstance(content, Sequence) and not isinstance(content, str):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            raise _TurnError(f"turn {number}: expected parts of text, got {seen(content)}. Leave out images and tools.")
        content = "".join(part["text"] for part in content)
    if problem := text_problem({text: content}, text, required=role != "system"):
        raise _TurnError(f"turn {number}: {text}: {problem}")
    return Message(role=role, content=content or "")


def _in_order(messages: list[Message]) -> list[Message]:
    """Checks the order of turns; drops an empty system prompt, and a last question, as it has no answer to learn."""
    messages = [message for message in messages if message["content"]]
    if messages and messages[-1]["role"] == "user":
        messages = messages[:-1]
    roles = [message["role"] for message in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        order = ", ".join(roles) or "no answer"
        raise _TurnError(f"expected user and assistant by turns, after at most one system prompt; got {order}.")
    return messages
