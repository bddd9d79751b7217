"""The files of an evaluation: a task is one file, checked whole, as training data is, before any model is asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loramoe.data.read import checked, locate
from loramoe.data.sources import data_files, file_hash, short_name
from loramoe.evaluation.example import Example, check_example


@dataclass(frozen=True)
class Task:
    """The questions of one file.

    Attributes:
        name: What the table calls it.
        file: The file.
        sha256: Of the file's bytes.
        examples: The questions, in the order of the file.
    """

    name: str
    file: Path
    sha256: str
    examples: tuple[Example, ...]


def read_tasks(paths: Sequence[str | os.PathLike[str]]) -> list[Task]:
    """Reads tasks, one a file.

    Args:
        paths: `.json` and `.jsonl` files, and folders of such.

    Returns:
        The tasks, named by their files; by the path as it was given, where two files have one name.

    Raises:
        DatasetError: If a path is no data, or a file has broken rows; tells of all of those in the first such file.
        ValueError: If a file is given twice.
    """
    files = [file for path in paths for file in data_files(path)]
    return [read_task(file, name) for file, name in zip(files, short_names(files), strict=True)]


def read_task(file: str | os.PathLike[str], name: str | None = None) -> Task:
    """Reads the questions of one file.

    Args:
        file: A `.json` or `.jsonl` file.
        name: What the table calls it. Default: the file's name without suffix.

    Returns:
        The task.

    Raises:
        DatasetError: If the file cannot be read, holds no rows, or has broken ones.
    """
    file = Path(file)
    found = checked(locate(data_files(file)), check_example)
    examples = tuple(replace(example, where=where.removeprefix(f"{file}, ")) for where, example in found)
    return Task(name or short_name(file.name), file, file_hash(file), examples)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Names that tell paths apart: the last part without a data file's suffix, or the whole where two would be equal.

    Args:
        paths: The paths.

    Returns:
        A name for each.

    Raises:
        ValueError: If a path is there twice.
    """
    stems = [short_name(path.name) for path in paths]
    names = [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths, strict=True)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"each file and adapter can be given once; got {twice[0]} twice. Leave one out.")
    return names
