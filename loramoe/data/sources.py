"""Where samples come from: files, folders and data sets of the hub, each with its task type and weight."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from loramoe.data.formats import COLUMNS, FORMATS, SampleReader, seen, task_type_problem
from loramoe.utils import UsageError

KINDS: Final = (".json", ".jsonl", ".csv", ".parquet")
COMPRESSED: Final = (".gz", ".zst")
_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")
_DATA_FILES: Final = f"a {', '.join(KINDS)} file (or {' or '.join(COMPRESSED)} of one)"


class DatasetError(UsageError):
    """The data cannot be used as it is; the message has the place, what was seen, what was expected and the fix."""


_CHECKS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    **dict.fromkeys(
        ("path", "split", "subset", "revision", "name"),
        ("some text in quotes", lambda value: isinstance(value, str) and bool(value.strip())),
    ),
    **dict.fromkeys(
        ("task_type", "default_task_type"),
        ("an integer such as 0 or 1", lambda value: type(value) is int and task_type_problem(value) is None),
    ),
    "weight": ("a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf),
    "max_samples": ("an integer above 0", lambda value: type(value) is int and value > 0),
    "format": (f"one of {', '.join(FORMATS)}", lambda value: value in FORMATS),
    "columns": (
        "names, such as {instruction: question, output: answer}",
        lambda value: isinstance(value, Mapping) and all(isinstance(name, str) for name in value.values()),
    ),
}


@dataclass(frozen=True)
class DataSource:
    """One data set.

    Attributes:
        path: A file, a folder of files, or `owner/name` of a data set on the hub.
        task_type: Type of every sample, whatever the samples have.
        default_task_type: Type of the samples that have none of their own.
        weight: Share in the mix; all data sets of a run have one, or none.
        max_samples: Use the first samples only, at most this many.
        format: One of "auto", "loramoe", "alpaca", "messages", "sharegpt".
        columns: Our name of a field → the name that the data has for it.
        split: Split of a data set on the hub.
        subset: Configuration of a data set on the hub.
        revision: Revision of a data set on the hub.
        name: Name of a validation set. Default: the last part of the path.
    """

    path: str
    task_type: int | None = None
    default_task_type: int | None = None
    weight: float | None = None
    max_samples: int | None = None
    format: str = "auto"
    columns: Mapping[str, str] | None = None
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            value, (expected, fits) = getattr(self, one.name), _CHECKS[one.name]
            if value is not one.default and not fits(value):
                raise DatasetError(f"data set {self.path}, {one.name}: expected {expected}, got {seen(value)}.")
        _refuse_unknown(self.columns or {}, COLUMNS, f"columns of {self.path}")

    def recipe(self, content: str) -> dict[str, Any]:
        """What decides the samples, for a hash: the hash of their content, and never where they lie."""
        names = ("task_type", "default_task_type", "max_samples", "format")
        chosen = {name: getattr(self, name) for name in names}
        return {"content": content, "columns": dict(self.columns or {}), **chosen}

    def content_hash(self) -> str:
        """Hashes the files of a data set."""
        return hash_of([("".join(kind_of(file)), file_hash(file)) for file in data_files(self.path)])

    @property
    def local(self) -> bool:
        """Whether this is a file or folder of this machine, and not a data set of the hub."""
        there = os.path.exists(os.path.expanduser(self.path))
        return there or not _HUB_NAME.fullmatch(self.path) or bool(kind_of(Path(self.path))[0])

    def reader(self, task_types: Collection[int] | None = None) -> SampleReader:
        """What makes samples of the values in this data set; task_types are those of the experts, None accepts any."""
        return SampleReader(self.format, self.columns, self.task_type, self.default_task_type, task_types)


@dataclass(frozen=True)
class DataConfig:
    """The data of a run.

    Attributes:
        datasets: What to learn from.
        validation: What to measure on.
        type_names: Names of task types, for logs and reports.
    """

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

    Args:
        path: The file, with the keys `datasets`, `validation` and `type_names`. Paths in it are relative to the
            current folder.

    Returns:
        The data.

    Raises:
        DatasetError: If the file cannot be read, or a key or value is wrong.
    """
    import yaml

    content, where = path, "datasets" if isinstance(path, Mapping) else os.fspath(path)
    if not isinstance(path, Mapping):
        try:
            content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DatasetError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}). Fix it.") from error
    if not isinstance(content, Mapping):
        raise DatasetError(f"{where}: expected the keys datasets, validation and type_names, got {seen(content)}.")
    _refuse_unknown(content, [one.name for one in fields(DataConfig)], where)
    names = content.get("type_names") or {}
    if not isinstance(names, dict):
        raise DatasetError(f"{where}, type_names: expected pairs like `0: tasks`, got {seen(names)}.")
    datasets, validation = (_sources(content.get(key), f"{where}, {key}") for key in ("datasets", "validation"))
    types = {int(key) if str(key).isdigit() else key: name for key, name in names.items()}
    return DataConfig(datasets, validation, types)


def _sources(entries: Any, where: str) -> tuple[DataSource, ...]:
    if not isinstance(entries, (list, type(None))):
        raise DatasetError(f"{where}: expected a list of data sets, got {seen(entries)}. Write `- {{path: FILE}}`.")
    sources = []
    for number, entry in enumerate(entries or [], start=1):
        values = {"path": entry} if isinstance(entry, str) else entry
        if not isinstance(values, dict) or "path" not in values:
            raise DatasetError(f"{where}, entry {number}: expected a path, got {seen(entry)}. Write {{path: FILE}}.")
        _refuse_unknown(values, list(_CHECKS), f"{where}, entry {number}")
        if isinstance(values.get("weight"), str):
            with suppress(ValueError):
                values = {**values, "weight": float(values["weight"])}  # as YAML takes 3e-1 for text
        sources.append(DataSource(**values))
    return tuple(sources)


def _refuse_unknown(given: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            fix = f"Did you mean {near[0]!r}?" if near else "Remove it."
            raise DatasetError(f"{where}: unknown key {key!r}; expected some of {', '.join(known)}. {fix}")


def kind_of(file: Path) -> tuple[str, str]:
    """What a file's name says of its content: one of KINDS and one of COMPRESSED, or `""`."""
    suffixes = [suffix.lower() for suffix in file.suffixes] or [""]
    compression = suffixes.pop() if suffixes[-1] in COMPRESSED else ""
    return (suffixes[-1] if suffixes and suffixes[-1] in KINDS else ""), compression


def data_files(path: str | os.PathLike[str]) -> list[Path]:
    """Lists the data files that a path stands for.

    A folder is read whole, in the order of names, hidden files left out. Its subfolders are not read, because a `test`
    folder below would become training data; a folder with data on both levels is refused.

    Args:
        path: A file or folder. `~` is the home directory.

    Returns:
        The files, at least one.

    Raises:
        DatasetError: If the path does not exist, or has no data, or some in its subfolders too.
    """
    root = Path(os.path.expanduser(path))
    if not os.fspath(path) or not os.path.exists(root):
        raise DatasetError(f"data path '{path}' does not exist (looked in {Path.cwd()}), nor is it a hub's owner/name.")
    if not root.is_dir():
        if not kind_of(root)[0]:
            raise DatasetError(f"{root}: expected {_DATA_FILES}; got {root.suffix or 'no suffix'!r}. Convert it.")
        return [root]
    files, folders = _listed(root)
    if below := next((folder for folder in folders if _listed(folder)[0]), None):
        raise DatasetError(f"{root}: the subfolder {below.name!r} holds data, but is not read. Name {below} or a file.")
    if not files:
        raise DatasetError(f"{root}: the folder holds none of {_DATA_FILES}. Name the folder that holds your data.")
    return files


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The data files and the folders of a folder."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed ({error.strerror}). Make it readable.") from error
    folders = [entry for entry in entries if entry.is_dir()]
    return [entry for entry in entries if kind_of(entry)[0] and entry not in folders], folders


def short_name(name: str) -> str:
    """A file's name without the endings of data files."""
    for suffix in (*COMPRESSED, *KINDS):
        name = name.removesuffix(suffix)
    return name


def hash_of(parts: Any) -> str:
    """The SHA-256 hash of values of JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_hash(file: Path) -> str:
    """The SHA-256 hash of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror}). Make it a file that you may read.") from error
    return digest.hexdigest()
