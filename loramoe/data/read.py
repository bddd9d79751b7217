"""Reading the rows of a dataset and saying exactly what is wrong with them.

A path is a `.json` file (one list of rows), a `.jsonl` file (one row per line) or a folder of such files. Everything is
checked before the first row reaches a tokenizer, and several bad rows are reported at once: whoever brings a million
rows wants one list of what to repair, not one error per attempt.

Files of both kinds are read row by row (`parse`, `json_list`), in memory that does not grow with them. What a row has
to be is in `row`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TypeVar

from loramoe.data.json_list import parse_list
from loramoe.data.parse import Item, parse_lines
from loramoe.data.row import Row, check_row
from loramoe.utils import UsageError

SUFFIXES: Final = (".json", ".jsonl")
MAX_PROBLEMS_SHOWN: Final = 10

T = TypeVar("T")


class DatasetError(UsageError):
    """The data cannot be used as it is; the message says where, what was seen, what was expected and the fix."""


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
    check = partial(check_row, task_types=task_types)
    for number, item, row in iter_checked(files, check, passed):
        yield Located(number, item.offset, item.length, row)


def iter_checked(
    files: Sequence[Path], check: Callable[[object], T | list[str]], passed: Callable[[int], object] | None = None
) -> Iterator[tuple[int, Item, T]]:
    """Reads rows of any kind; `locate_rows` is this with the check of a row of the training.

    Args:
        files: Files, as `data_files` lists them.
        check: Makes of a value of a file, which may be `Unparsable`, what is to be yielded, or a list of problems.
        passed: As of `locate_rows`.

    Yields:
        Which of the files, from 0, the value with its place, and what `check` made of it.

    Raises:
        DatasetError: As `iter_rows`.
    """
    problems, before = _Problems(), 0
    for number, file in enumerate(files):
        empty = True
        with open_data_file(file) as stream:
            for item in parse_lines(stream) if file.suffix.lower() == ".jsonl" else parse_list(stream):
                empty = False
                checked = check(item.value)
                if isinstance(checked, list):
                    for problem in checked:
                        problems.add(f"{file}, {item.where}{problem}")
                elif not problems.count:
                    yield number, item, checked
                if passed is not None:
                    passed(before + item.offset + item.length)
            before += stream.seek(0, os.SEEK_END)
        if empty:
            problems.add(f"{file}: the file holds no rows. Add some, or remove the file.")
    problems.raise_if_any()


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
