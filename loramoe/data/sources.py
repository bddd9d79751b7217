"""Where samples come from: files, folders and data sets of the hub, each with its task type and weight."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from loramoe.data.formats import COLUMNS, FORMATS, SampleReader, seen, task_type_problem
from loramoe.utils import UsageError

KINDS: Final = (".json", ".jsonl", ".csv", ".parquet")
COMPRESSED: Final = (".gz", ".zst")
CHUNK_BYTES: Final = 2**20
_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")


class DatasetError(UsageError):
    """The data cannot be used as it is; the message has the place, what was seen, what was expected and the fix."""


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
        for key in ("path", "split", "subset", "revision", "name"):
            value = getattr(self, key)
            optional = value is None and key not in ("path", "split")
            if not optional and not (isinstance(value, str) and value.strip()):
                self._refuse(key, "some text", "Write it in quotes.")
        for key in ("task_type", "default_task_type"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or task_type_problem(value)):
                self._refuse(key, "an integer", "Write a number such as 0 or 1.")
        if self.weight is not None and not _positive(self.weight):
            self._refuse("weight", "a number above 0", "Write a share such as 0.7.")
        if self.max_samples is not None and not (type(self.max_samples) is int and self.max_samples > 0):
            self._refuse("max_samples", "an integer above 0", "Correct it, or leave it out.")
        if self.format not in FORMATS:
            self._refuse("format", f"one of {', '.join(FORMATS)}", "Choose one.")
        if self.columns is not None:
            self._check_columns()

    @property
    def local(self) -> bool:
        """Whether this is a file or folder of this machine, and not a data set of the hub."""
        return os.path.exists(Path(self.path).expanduser()) or not _HUB_NAME.fullmatch(self.path) or _is_data(self.path)

    def reader(self, task_types: Collection[int] | None = None) -> SampleReader:
        """What makes samples of the values in this data set.

        Args:
            task_types: The types that the experts have; None accepts any.

        Returns:
            The reader.
        """
        return SampleReader(self.format, self.columns, self.task_type, self.default_task_type, task_types)

    def _check_columns(self) -> None:
        if not isinstance(self.columns, Mapping) or not all(isinstance(name, str) for name in self.columns.values()):
            self._refuse("columns", "names, such as {instruction: question, output: answer}", "Correct it.")
        refuse_unknown(self.columns or {}, COLUMNS, f"columns of {self.path}")

    def _refuse(self, key: str, expected: str, fix: str) -> None:
        raise DatasetError(f"data set {self.path}, {key}: expected {expected}, got {seen(getattr(self, key))}. {fix}")


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
        weighted = [source for source in self.datasets if source.weight is not None]
        if 0 < len(weighted) < len(self.datasets):
            missing = next(source.path for source in self.datasets if source.weight is None)
            raise DatasetError(
                f"data set {missing}: expected a weight, as others have one. Give all a weight, or none."
            )
        for key, name in self.type_names.items():
            if type(key) is not int or not isinstance(name, str):
                raise DatasetError(
                    f"type_names: expected pairs such as `0: tasks`, got {seen(key)}: {seen(name)}. Quote the name."
                )


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

    try:
        content = path
        if not isinstance(path, Mapping):
            content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        path = "datasets" if isinstance(path, Mapping) else path
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DatasetError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}). Correct it.") from error
    if not isinstance(content, Mapping):
        raise DatasetError(f"{path}: expected the keys datasets, validation and type_names, got {seen(content)}.")
    refuse_unknown(content, [one.name for one in fields(DataConfig)], str(path))
    names = content.get("type_names") or {}
    if not isinstance(names, dict):
        raise DatasetError(f"{path}, type_names: expected pairs such as `0: tasks`, got {seen(names)}. Correct it.")
    return DataConfig(
        _sources(content.get("datasets"), f"{path}, datasets"),
        _sources(content.get("validation"), f"{path}, validation"),
        {int(key) if str(key).isdigit() else key: name for key, name in names.items()},
    )


def _sources(entries: Any, where: str) -> tuple[DataSource, ...]:
    if not isinstance(entries, (list, type(None))):
        raise DatasetError(f"{where}: expected a list of data sets, got {seen(entries)}. Write `- {{path: FILE}}`.")
    sources = []
    for number, entry in enumerate(entries or [], start=1):
        values = {"path": entry} if isinstance(entry, str) else entry
        if not isinstance(values, dict) or "path" not in values:
            raise DatasetError(f"{where}, entry {number}: expected a path, got {seen(entry)}. Write {{path: FILE}}.")
        refuse_unknown(values, [one.name for one in fields(DataSource)], f"{where}, entry {number}")
        weight = values.get("weight")
        if isinstance(weight, str):  # as YAML takes 3e-1
            with suppress(ValueError):
                values = {**values, "weight": float(weight)}
        sources.append(DataSource(**values))
    return tuple(sources)


def refuse_unknown(given: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    """Refuses keys that nobody would read."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            fix = f"Did you mean {near[0]!r}?" if near else "Remove it."
            raise DatasetError(f"{where}: unknown key {key!r}; expected some of {', '.join(known)}. {fix}")


def kind_of(file: Path) -> tuple[str, str]:
    """What a file's name says of its content."""
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
    root = Path(path).expanduser()
    if not os.fspath(path) or not os.path.exists(root):
        raise DatasetError(
            f"data path '{path}' does not exist (looked in {Path.cwd()}), and is no name of the hub, which are written "
            "owner/name. Correct it."
        )
    if not root.is_dir():
        if not _is_data(root):
            raise DatasetError(f"{root}: expected {_expected()}; got {root.suffix or 'no suffix'!r}. Convert it.")
        return [root]
    files = _listed(root)
    below = [folder.name for folder in _entries(root) if folder.is_dir() and _listed(folder)]
    if below:
        raise DatasetError(
            f"{root}: the subfolder {below[0]!r} holds data files; subfolders are not read. "
            f"Name the folder or file that you mean, such as {root / below[0]}."
        )
    if not files:
        raise DatasetError(f"{root}: the folder holds none of {_expected()}. Name the folder that holds your data.")
    return files


def short_name(name: str) -> str:
    """A file's name without the endings of data files."""
    for suffix in (*COMPRESSED, *KINDS):
        name = name.removesuffix(suffix)
    return name


def file_hash(file: Path) -> str:
    """The SHA-256 hash of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror}). Make it a file that you may read.") from error
    return digest.hexdigest()


def _is_data(path: str | Path) -> bool:
    return bool(kind_of(Path(path))[0])


def _expected() -> str:
    return f"a {', '.join(KINDS)} file (or {' or '.join(COMPRESSED)} of one)"


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed ({error.strerror}). Make it readable.") from error


def _listed(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if _is_data(entry) and not entry.is_dir()]


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
