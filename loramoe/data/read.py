"""Reading the rows of a dataset and saying exactly what is wrong with them.

A path is a `.json` file (one list of rows), a `.jsonl` file (one row per line) or a folder of such files. Everything is
checked before the first row reaches a tokenizer, and several bad rows are reported at once: whoever brings a million
rows wants one list of what to repair, not one error per attempt.

Files of both kinds are read row by row (`parse`, `json_list`), in memory that does not grow with them.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypedDict

from loramoe.data.json_list import parse_list
from loramoe.data.parse import Unparsable, parse_lines

SUFFIXES: Final = (".json", ".jsonl")
MAX_PROBLEMS_SHOWN: Final = 10
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class DatasetError(ValueError):
    """The data cannot be used as it is; the message says where, what was seen, what was expected and the fix."""


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


class Located(NamedTuple):
    """A row and where it was found, so that it can be read again alone.

    Attributes:
        file: Which of the files, from 0.
        offset: Its place in the file, in bytes.
        length: Its length in bytes.
        row: The row.
    """

    file: int
    offset: int
    length: int
    row: Row


@dataclass
class _Problems:
    """Keeps the first few problems and the count of all, however many there are."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        self.count += 1
        if self.count <= MAX_PROBLEMS_SHOWN:
            self.shown.append(problem)

    def raise_if_any(self) -> None:
        if self.count == 1:
            raise DatasetError(self.shown[0])
        if self.count > 1:
            first = f", the first {MAX_PROBLEMS_SHOWN} are" if self.count > MAX_PROBLEMS_SHOWN else ""
            raise DatasetError("\n  ".join([f"{self.count:,} problems in the data{first}:", *self.shown]))


def data_files(path: str | os.PathLike[str]) -> list[Path]:
    """Lists the data files that a path stands for.

    A folder is read whole: every `.json` and `.jsonl` file directly in it, in the order of their names, hidden files
    left out. Its subfolders are not read, because a `test` folder below would end up in the training data; a folder
    that has data files on both levels is refused rather than read in part.

    Args:
        path: A `.json` or `.jsonl` file, or a folder. `~` is the home directory.

    Returns:
        The files, at least one.

    Raises:
        DatasetError: If the path does not exist, is no data file, or is a folder without data files or with some in its
            subfolders too.
    """
    root = Path(path).expanduser()
    if not os.fspath(path) or not os.path.exists(root):
        raise DatasetError(
            f"data path '{path}' does not exist or is out of reach (looked in {Path.cwd()}). Correct the path."
        )
    if not root.is_dir():
        if root.suffix.lower() not in SUFFIXES:
            raise DatasetError(
                f"{root}: expected a .json or .jsonl file, got {root.suffix or 'no suffix'!r}. Convert it."
            )
        return [root]
    return _folder_files(root)


def iter_rows(path: str | os.PathLike[str], task_types: Collection[int] | None = None) -> Iterator[Row]:
    """Reads and checks the rows of a dataset, one at a time.

    Good rows are yielded as they are found, so read to the end before using any: the error comes after the last row and
    tells of all bad ones. After the first bad row none is yielded any more, because nothing can come of it: the rest is
    only checked. Fields that are not part of a row are ignored.

    Args:
        path: A file or folder, as `data_files` takes it.
        task_types: The task types that the experts have; None accepts any integer.

    Yields:
        The rows in the order of the files and of the rows in them.

    Raises:
        DatasetError: If a file cannot be read or holds no rows, or if any row is broken. Up to ten problems are named.
    """
    for located in locate_rows(data_files(path), task_types):
        yield located.row


def locate_rows(
    files: Sequence[Path], task_types: Collection[int] | None, passed: Callable[[int], object] | None = None
) -> Iterator[Located]:
    """Does what `iter_rows` does, and says where each row stands.

    Args:
        files: Files, as `data_files` lists them.
        task_types: The task types that the experts have; None accepts any integer.
        passed: Called for each row, good or bad, with the bytes from the beginning of the first file to its end.

    Yields:
        The rows with their places.

    Raises:
        DatasetError: As `iter_rows`.
    """
    problems, before = _Problems(), 0
    for number, file in enumerate(files):
        empty = True
        with open_data_file(file) as stream:
            for item in parse_lines(stream) if file.suffix.lower() == ".jsonl" else parse_list(stream):
                empty = False
                checked = _check(item.value, task_types)
                if isinstance(checked, list):
                    for problem in checked:
                        problems.add(f"{file}, {item.where}{problem}")
                elif not problems.count:
                    yield Located(number, item.offset, item.length, checked)
                if passed is not None:
                    passed(before + item.offset + item.length)
            before += stream.seek(0, os.SEEK_END)
        if empty:
            problems.add(f"{file}: the file holds no rows. Add some, or remove the file.")
    problems.raise_if_any()


def to_row(value: Mapping[str, Any]) -> Row:
    """Takes the fields of a row from a value that was checked."""
    return Row(
        instruction=value["instruction"],
        input=value.get("input", ""),
        output=value["output"],
        task_type=value["task_type"],
    )


def open_data_file(file: Path) -> BinaryIO:
    """Opens a data file for reading bytes.

    Args:
        file: One of `data_files`.

    Returns:
        The open file.

    Raises:
        DatasetError: If it cannot be opened: a folder of that name, no permission, a dangling link.
    """
    try:
        return file.open("rb")
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror}). Make it a file that you may read.") from error


def _folder_files(root: Path) -> list[Path]:
    files = _listed(root)
    below = [folder.name for folder in _entries(root) if folder.is_dir() and folder not in files and _listed(folder)]
    if below:
        also = "besides its own" if files else "but none itself"
        raise DatasetError(
            f"{root}: the subfolder {below[0]!r} holds data files, {also}; subfolders are not read. "
            f"Name the folder or file that you mean, such as {root / below[0]}."
        )
    if not files:
        raise DatasetError(f"{root}: the folder holds no .json or .jsonl file. Name the folder that holds your data.")
    return files


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot be listed ({error.strerror}). Make it a folder that you may read."
        ) from error


def _listed(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.suffix.lower() in SUFFIXES]


def _check(value: object, task_types: Collection[int] | None) -> Row | list[str]:
    """Returns the row, or what is wrong with it."""
    if isinstance(value, Unparsable):
        return [value.problem]
    if not isinstance(value, dict):
        return [f": expected an object with instruction, input, output and task_type, got {_seen(value)}. Write one."]
    checks = {
        "instruction": _text_problem(value, "instruction", required=True),
        "input": _text_problem(value, "input", required=False),
        "output": _text_problem(value, "output", required=True),
        "task_type": _task_type_problem(value, task_types),
    }
    problems = [f", field {name!r}: {problem}" for name, problem in checks.items() if problem]
    return problems or to_row(value)


def _text_problem(row: Mapping[str, object], name: str, required: bool) -> str | None:
    if name not in row:
        return _missing(row) if required else None
    text = row[name]
    if not isinstance(text, str):
        fix = "Write it in quotes." if required else "Write it in quotes, or leave the field out if there is no input."
        return f"expected text, got {_seen(text)}. {fix}"
    if required and not text.strip():
        return f"expected some text, got {_seen(text)}. Fill it in, or remove the row."
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"expected Unicode text, got half of a surrogate pair ({text[error.start]!r}). Remove it."
    return None


def _task_type_problem(row: Mapping[str, object], task_types: Collection[int] | None) -> str | None:
    if "task_type" not in row:
        return _missing(row)
    value = row["task_type"]
    if not isinstance(value, int) or isinstance(value, bool):
        return f"expected an integer, got {_seen(value)}. Write a number without quotes or point, such as 0 or 1."
    if not INT64_MIN <= value <= INT64_MAX:
        return f"expected an integer of 64 bits, got {_seen(value)}. Write a smaller number, such as 0 or 1."
    if task_types is not None and value not in task_types:
        known = ", ".join(map(str, sorted(set(task_types))))
        return f"got {value}, but the experts have the types {known}. Correct it, or add type {value} to expert_types."
    return None


def _missing(row: Mapping[str, object]) -> str:
    return f"missing; the row has {reprlib.repr(list(row))}. Add it."


def _seen(value: object) -> str:
    return f"{reprlib.repr(value)} ({type(value).__name__})"
