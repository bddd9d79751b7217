"""Reading data: by the `datasets` library, which is fast, or by plain Python, which gives each sample its place.

The library reads a `.json` list whole and guesses the types of CSV; and when it fails it does not say where. So Python
reads what the library reads badly, and reads again what the library has refused.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TextIO, TypeVar, cast

from loramoe.data.formats import COLUMNS, Sample, SampleReader, Unparsable
from loramoe.data.sources import DatasetError, DataSource, data_files, kind_of

MAX_FAULTS_SHOWN: Final = 10
BUFFER_CHARACTERS: Final = 2**20

T = TypeVar("T")


class Located(NamedTuple):
    """A value, or `Unparsable`, and its place in words: `train.jsonl, line 3`."""

    where: str
    value: object


def read_samples(
    path: str | os.PathLike[str], task_types: Collection[int] | None = None, default_task_type: int | None = None
) -> Iterator[Sample]:
    """Reads and checks the samples of a file or folder.

    Read to the end before using any: faults are reported together, after the last good sample.

    Args:
        path: A file or folder, as `data_files` takes it.
        task_types: The types that the experts have; None accepts any integer.
        default_task_type: Type of the samples that have none.

    Yields:
        The samples, in the order of the files and of the samples in them.

    Raises:
        DatasetError: If a file cannot be read or is empty, or samples are faulty. Up to ten faults are named.
    """
    reader = SampleReader(task_types=task_types, default_task_type=default_task_type)
    yield from (sample for _, sample in checked(locate(data_files(path)), reader))


def checked(values: Iterable[Located], check: Callable[[object], T | list[str]]) -> Iterator[tuple[str, T]]:
    """Yields places and what `check` makes of the values, up to the first of which it makes a list of problems.

    Raises:
        DatasetError: After the last value, if any was faulty; equal faults are named once.
    """
    faults: dict[str, tuple[str, int]] = {}  # what is wrong → where it was first seen, how often
    count = 0
    for where, value in values:
        made = check(value)
        if not isinstance(made, list):
            if not faults:
                yield where, made
            continue
        count += len(made)
        for problem in made:
            first, times = faults.get(problem, (where, 0))
            if times or len(faults) < MAX_FAULTS_SHOWN:
                faults[problem] = first, times + 1
    if faults:
        often = " ({:,} samples like this)"
        lines = [where + problem + often.format(times) * (times > 1) for problem, (where, times) in faults.items()]
        raise DatasetError("\n  ".join(lines if len(lines) == 1 else [f"{count:,} faults in the data:", *lines]))


def conversations(files: Sequence[Path], reader: SampleReader, most: int | None) -> Iterator[dict[str, Any]]:
    """Reads samples as rows of a data set of the `datasets` library."""
    for _, sample in checked(islice(locate(files), most), reader):
        yield {"messages": sample.messages, "task_type": sample.task_type}


def by_python(
    files: list[Path], reader: SampleReader, most: int | None, cache: str | None = None, streaming: bool = False
) -> Any:
    """Makes a data set of `conversations`, stored or streamed."""
    from datasets import Dataset, Features, IterableDataset, Value

    text, number = Value("string"), Value("int64")
    features = Features({"messages": [{"role": text, "content": text}], "task_type": number})
    # Of a list, the library gives `conversations` one file at a time: `most` is of all files together.
    arguments = {"files": tuple(files) if most else files, "reader": reader, "most": most}
    if streaming:
        return IterableDataset.from_generator(conversations, gen_kwargs=arguments, features=features)
    return Dataset.from_generator(conversations, gen_kwargs=arguments, features=features, cache_dir=cache)


def by_library(files: Sequence[Path], reader: SampleReader, cache: str) -> Any:
    """Reads the columns that samples are made of with the `datasets` library."""
    from datasets import load_dataset

    names = [str(file.resolve()) for file in files]
    kind = "json" if kind_of(files[0])[0] == ".jsonl" else "parquet"
    dataset = load_dataset(kind, data_files=names, split="train", cache_dir=cache)
    used = sorted(set(map(reader.column, COLUMNS)) & set(dataset.column_names))
    if any("Json(" in repr(dataset.features[name]) for name in used):
        raise ValueError("values of mixed types, of which the library would make text")
    return dataset.select_columns(used)


def load_hub(source: DataSource, streaming: bool = False) -> Any:
    """Loads a data set of the hub."""
    from datasets import load_dataset

    options = {"split": source.split, "revision": source.revision, "streaming": streaming}
    try:
        return load_dataset(source.path, source.subset, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DatasetError(
            f"data set {source.path} is no file or folder here (looked in {Path.cwd()}), and the hub does not give it "
            f"({type(error).__name__}: {reason}). Correct path, subset, split or revision, or check the network."
        ) from error


def locate(files: Sequence[Path]) -> Iterator[Located]:
    """Reads the values of files, good and bad."""
    for file in files:
        where = ""
        try:
            with _open(file) as stream:
                for where, value in _PARSERS[kind_of(file)[0]](stream):
                    yield Located(f"{file}, {where}", value)
        except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
            yield Located(f"{file}{where and f', after {where}'}", _unparsable(error))
            continue
        if not where:
            yield Located(str(file), Unparsable(": the file holds no samples. Add some, or remove the file."))


def _unparsable(error: Exception) -> Unparsable:
    if isinstance(error, UnicodeDecodeError):
        return Unparsable(f": not UTF-8 (byte {error.object[error.start]:#04x}). Save the file as UTF-8.")
    if isinstance(error, json.JSONDecodeError):
        return Unparsable(f", column {error.colno}: not valid JSON ({error.msg}). Repair it.")
    return Unparsable(f": cannot be read ({getattr(error, 'strerror', None) or error}). Repair it.")


def _open(file: Path) -> BinaryIO:
    import pyarrow as pa

    compression = kind_of(file)[1]
    if compression == ".gz":
        return cast(BinaryIO, gzip.open(file))
    stream = file.open("rb")
    return io.BufferedReader(pa.CompressedInputStream(stream, "zstd")) if compression else stream


def _parse_lines(stream: BinaryIO) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(stream, start=1):  # bytes, so that a line that is not UTF-8 spoils no other
        if line.strip():
            try:
                value: object = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                value = _unparsable(error)
            yield f"line {number}", value


def _parse_csv(stream: BinaryIO) -> Iterator[tuple[str, object]]:
    csv.field_size_limit(sys.maxsize)
    with io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        try:
            for values in reader:
                extra = len(values.pop(None, ()))  # where csv puts what the header does not name
                problem = f": has {extra} more fields than the header names. Put quotes around text with commas."
                yield f"line {reader.line_num}", Unparsable(problem) if extra else values
        except csv.Error as error:
            yield f"line {reader.reader.line_num}", Unparsable(f": not valid CSV ({error}). Repair it.")


def located(place: str, rows: Iterable[object]) -> Iterator[Located]:
    """Numbers rows."""
    return (Located(f"{place} {number}", row) for number, row in enumerate(rows, start=1))


def _parse_parquet(stream: BinaryIO) -> Iterator[tuple[str, object]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(stream if stream.seekable() else io.BytesIO(stream.read()))
    return located("row", (row for batch in file.iter_batches(1_000) for row in batch.to_pylist()))


def _parse_json(stream: BinaryIO) -> Iterator[tuple[str, object]]:
    """Reads a list; or lines, if the file begins with an object."""
    if stream.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"{":  # type: ignore[attr-defined]
        with io.TextIOWrapper(stream, "utf-8-sig") as source:
            yield from _parse_list(source)
        return
    for where, value in _parse_lines(stream):
        if isinstance(value, Unparsable):
            yield where, Unparsable(": expected a list of samples, [{…}, {…}], or one sample a line, {…}. Write it so.")
            return
        yield where, value


def _parse_list(source: TextIO) -> Iterator[tuple[str, object]]:
    """Reads a list value by value, so that memory holds a buffer and not the file.

    The decoder does not say whether a value is broken or cut off at the end of the buffer, so what fails is tried again
    with a buffer of twice the size until the file ends.
    """
    decode = json.JSONDecoder().raw_decode
    text, pos, line, number = "", 0, 1, 0
    while True:
        try:
            begin = (_NEXT if number else _FIRST).match(text, pos)
            if not begin:
                expected = "Expecting ',' or ']'" if number else "Expecting '['"
                raise json.JSONDecodeError(expected, text, len(text) - len(text[pos:].lstrip()))
            value, pos = decode(text, begin.end())
        except json.JSONDecodeError as error:
            if more := source.read(max(BUFFER_CHARACTERS, len(text) - pos)):
                line += text.count("\n", 0, pos)
                text, pos = text[pos:] + more, 0
                continue
            if "".join(text[pos:].split()) not in (("]",) if number else ("", "[]")):
                place = f"line {line + text.count(chr(10), 0, error.pos)}, after row {number}"
                yield place, Unparsable(f": not valid JSON ({error.msg}). Repair it.")
            return
        number += 1
        yield f"row {number}", value


_FIRST, _NEXT = re.compile(r"\s*\[\s*"), re.compile(r"\s*,\s*")
_PARSERS: Final[dict[str, Callable[[BinaryIO], Iterator[tuple[str, object]]]]] = {
    ".json": _parse_json,
    ".jsonl": _parse_lines,
    ".csv": _parse_csv,
    ".parquet": _parse_parquet,
}
