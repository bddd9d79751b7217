"""Where samples come from: files, folders and data sets of the hub, each with its task type and weight."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import yaml

from loramoe.data.formats import COLUMNS, FORMATS, SampleReader, seen
from loramoe.utils import UsageError, as_usage_error, read_yaml

_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_NAME: Final = re.compile(r"(.*?)(\.json|\.jsonl|\.csv|\.parquet)(\.gz|\.zst)?", re.IGNORECASE | re.DOTALL)
_DATA_FILES: Final = "a .json, .jsonl, .csv, .parquet file (or .gz or .zst of one)"


class DatasetError(UsageError):
    """The data cannot be used as it is; the message has the place, what was seen, what was expected and the fix."""


_CHECKS: Final[dict[str, tuple[str, Callable[[Any], bool]]]] = {
    "path": ("some text in quotes", lambda value: isinstance(value, str) and bool(value.strip())),
    "task_type": ("an integer such as 0 or 1", lambda value: type(value) is int),
    "weight": ("a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf),
    "max_samples": ("an integer above 0", lambda value: type(value) is int and value > 0),
    "format": (f"one of {', '.join(FORMATS)}", lambda value: value in FORMATS),
    "columns": ("names, such as {instruction: question, output: answer}", lambda value: isinstance(value, Mapping)),
}
_CHECKS.update(dict.fromkeys(("split", "subset", "revision", "name"), _CHECKS["path"]))
_CHECKS["default_task_type"] = _CHECKS["task_type"]


@dataclass(frozen=True)
class DataSource(SampleReader):
    """One data set; it makes samples of its values."""

    path: str  # a file, a folder of files, or `owner/name` of a data set on the hub
    weight: float | None = None  # share in the mix; all data sets of a run have one, or none
    max_samples: int | None = None  # use the first samples only
    split: str = "train"  # which part of a data set on the hub, as are the next two
    subset: str | None = None
    revision: str | None = None
    name: str | None = None  # of a validation set, for the log; by default the last part of the path

    def __post_init__(self) -> None:
        for one in fields(self):
            value, (expected, fits) = getattr(self, one.name), _CHECKS[one.name]
            if value is not one.default and not fits(value):
                raise DatasetError(f"data set {self.path}, {one.name}: expected {expected}, got {seen(value)}.")
        _refuse_unknown(self.columns or {}, COLUMNS, f"columns of {self.path}")

    @property
    def local(self) -> bool:
        """Whether this is a file or folder of this machine, and not a data set of the hub."""
        there = os.path.exists(os.path.expanduser(self.path))
        return there or not _HUB_NAME.fullmatch(self.path) or bool(kind_of(self.path)[0])


@dataclass(frozen=True)
class DataConfig:
    """The data of a run: for training, for validation, and the names of task types for logs and reports."""

    datasets: tuple[DataSource, ...]
    validation: tuple[DataSource, ...] = ()
    type_names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.datasets:
            raise DatasetError("datasets: expected at least one data set, got none. Add one, such as {path: FILE}.")
        missing = [source.path for source in self.datasets if source.weight is None]
        if 0 < len(missing) < len(self.datasets):
            raise DatasetError(f"data set {missing[0]}: expected a weight, as others have one. Give all one, or none.")
        for key, name in self.type_names.items():
            if type(key) is not int or not isinstance(name, str):
                raise DatasetError(f"type_names: expected pairs like `0: tasks`, got {seen(key)}: {seen(name)}.")


def read_data_config(path: str | os.PathLike[str] | Mapping[str, Any]) -> DataConfig:
    """Reads the data of a run from a YAML or JSON file, or from what such a file holds.

    The keys are `datasets`, `validation` and `type_names`; paths are relative to the current folder.

    Raises:
        UsageError: If the file cannot be read, or a key or value is wrong.
    """
    content, where = path, "datasets" if isinstance(path, Mapping) else os.fspath(path)
    if not isinstance(path, Mapping):
        with as_usage_error(OSError, UnicodeDecodeError, yaml.YAMLError, about=f"{path} cannot be read as YAML:"):
            content = read_yaml(Path(path).expanduser().read_text(encoding="utf-8"))
    if not isinstance(content, Mapping) or not isinstance(content.get("type_names") or {}, Mapping):
        raise DatasetError(f"{where}: expected the keys of docs/data.md, got {seen(content)}. Write it as shown there.")
    _refuse_unknown(content, [one.name for one in fields(DataConfig)], where)
    names = content.get("type_names") or {}
    datasets, validation = (_sources(content.get(key) or [], f"{where}, {key}") for key in ("datasets", "validation"))
    return DataConfig(datasets, validation, {int(key) if str(key).isdigit() else key: names[key] for key in names})


def _sources(entries: Any, where: str) -> tuple[DataSource, ...]:
    sources = []
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], start=1):
        values = {"path": entry} if isinstance(entry, str) else entry
        if not isinstance(values, dict) or "path" not in values:
            raise DatasetError(f"{where}, entry {number}: expected a path, got {seen(entry)}. Write {{path: FILE}}.")
        _refuse_unknown(values, _CHECKS, f"{where}, entry {number}")
        sources.append(DataSource(**values))
    return tuple(sources)


def _refuse_unknown(given: Iterable[Any], known: Iterable[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            fix = f"Did you mean {near[0]!r}?" if near else "Remove it."
            raise DatasetError(f"{where}: unknown key {key!r}; expected some of {', '.join(known)}. {fix}")


def data_files(path: str | os.PathLike[str]) -> list[Path]:
    """Lists the data files of a path, at least one: the file, or those of a folder in the order of names.

    Subfolders are not read, because a `test` folder below would become training data.

    Raises:
        DatasetError: If the path does not exist, or has no data.
    """
    root = Path(os.path.expanduser(path))
    if not os.fspath(path) or not os.path.exists(root):
        raise DatasetError(f"data path '{path}' does not exist (looked in {Path.cwd()}), nor is it a hub's owner/name.")
    if not root.is_dir():
        if not kind_of(root)[0]:
            raise DatasetError(f"{root}: expected {_DATA_FILES}; got {root.suffix or 'no suffix'!r}. Convert it.")
        return [root]
    visible = [entry for entry in sorted(root.iterdir()) if not entry.name.startswith(".")]
    files = [entry for entry in visible if kind_of(entry)[0] and not entry.is_dir()]
    if not files:
        raise DatasetError(f"{root}: the folder holds none of {_DATA_FILES}. Name the folder that holds your data.")
    return files


def kind_of(file: str | os.PathLike[str]) -> tuple[str, str]:
    """What a file's name says of its content: `.jsonl` and the like, and `.gz` or `.zst`; `""` for neither."""
    name = _FILE_NAME.fullmatch(os.fspath(file))
    return (name[2].lower(), (name[3] or "").lower()) if name else ("", "")


def short_name(name: str) -> str:
    """A file's name without the endings of data files."""
    found = _FILE_NAME.fullmatch(name)
    return found[1] if found else name


def hash_of(parts: Any) -> str:
    """The SHA-256 hash of values of JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
