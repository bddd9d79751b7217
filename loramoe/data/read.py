"""Reading data files: each value with its place, so that a fault is named with file and line.

Plain Python reads them, because `datasets` loads a `.json` list whole, guesses the types of columns, and does not say
where it failed.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import BinaryIO, Final, TextIO, TypeVar

from loramoe.data.formats import Sample, SampleReader
from loramoe.data.sources import DatasetError, data_files, kind_of

MAX_FAULTS_SHOWN: Final = 10
BUFFER_CHARACTERS: Final = 2**20

T = TypeVar("T")
Values = Iterator[tuple[str, object]]
"""Values, or a ValueError in place of one that cannot be read, each after its place: `train.jsonl, line 3`."""

logger = logging.getLogger(__name__)
_skipped = count(1)  # of this process


def read_samples(
    path: str | os.PathLike[str], task_types: Collection[int] | None = None, default_task_type: int | None = None
) -> Iterator[Sample]:
    """Reads and checks the samples of a file or folder, in the order of files and samples.

    `task_types` are the types of the experts; None accepts any integer. Read to the end before using any sample.

    Raises:
        DatasetError: After the last good sample, if a file cannot be read or is empty, or samples are faulty.
    """
    reader = partial(SampleReader(default_task_type=default_task_type), task_types=task_types)
    yield from (sample for _, sample in checked(locate(data_files(path)), reader))


def checked(
    values: Iterable[tuple[str, object]], check: Callable[[object], T | list[str]], skip: bool = False
) -> Iterator[tuple[str, T]]:
    """Yields places and what `check` makes of the values, up to the first of which it makes a list of problems.

    With `skip`, faulty values are left out with a warning, and the others follow.

    Raises:
        DatasetError: After the last value, if any was faulty. Equal faults are named once, ten at most.
    """
    faults: dict[str, tuple[str, int]] = {}  # the problem, where it was first seen, and how often
    total = 0
    for where, value in values:
        made = check(value)
        if not isinstance(made, list):
            if not faults:
                yield where, made
            continue
        if skip:
            logger.warning("sample skipped (%d so far): %s%s", next(_skipped), where, made[0])
            continue
        total += len(made)
        for problem in made:
            first, times = faults.get(problem, (where, 0))
            if times or len(faults) < MAX_FAULTS_SHOWN:
                faults[problem] = first, times + 1
    if faults:
        often = " ({:,} samples like this)"
        lines = [where + problem + often.format(times) * (times > 1) for problem, (where, times) in faults.items()]
        raise DatasetError("\n  ".join(lines if len(lines) == 1 else [f"{total:,} faults in the data:", *lines]))


def locate(files: Iterable[Path]) -> Values:
    """Reads the values of files, good and bad."""
    for file in files:
        where = ""
        try:
            with _open(file) as stream:
                for where, value in _PARSERS[kind_of(file)[0]](stream):
                    yield f"{file}, {where}", value
        except (OSError, ValueError, RecursionError, csv.Error) as error:
            yield f"{file}{where and f', after {where}'}", _problem(error)
        else:
            if not where:
                yield str(file), ValueError(": the file holds no samples. Add some, or remove the file.")


def _problem(error: Exception) -> ValueError:
    if isinstance(error, UnicodeDecodeError):
        return ValueError(f": not UTF-8 (byte {error.object[error.start]:#04x}). Save the file as UTF-8.")
    if isinstance(error, json.JSONDecodeError):
        return ValueError(f", column {error.colno}: not valid JSON ({error.msg}). Repair it.")
    return ValueError(f": cannot be read ({getattr(error, 'strerror', None) or error}). Repair it.")


def _open(file: Path) -> BinaryIO:
    import pyarrow as pa

    stream, compression = file.open("rb"), {".gz": "gzip", ".zst": "zstd"}.get(kind_of(file)[1])
    return io.BufferedReader(pa.CompressedInputStream(stream, compression)) if compression else stream


def _parse_lines(stream: BinaryIO) -> Values:
    for number, line in enumerate(stream, start=1):  # bytes, so that a line that is not UTF-8 spoils no other
        if line.strip():
            try:
                value: object = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                value = _problem(error)
            yield f"line {number}", value


def _parse_csv(stream: BinaryIO) -> Values:
    csv.field_size_limit(sys.maxsize)
    with io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        for values in reader:
            extra = len(values.pop(None, ()))  # where csv puts what the header does not name
            problem = f": has {extra} more fields than the header names. Put quotes around text with commas."
            yield f"line {reader.line_num}", ValueError(problem) if extra else values


def _parse_parquet(stream: BinaryIO) -> Values:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(stream if stream.seekable() else io.BytesIO(stream.read()))
    rows = (row for batch in file.iter_batches(1_000) for row in batch.to_pylist())
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _parse_json(stream: BinaryIO) -> Values:
    if stream.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":  # type: ignore[attr-defined]
        yield from _parse_lines(stream)  # many .json files hold one sample a line
        return
    with io.TextIOWrapper(stream, "utf-8-sig") as source:
        yield from _parse_list(source)


def _parse_list(source: TextIO) -> Values:
    """Reads a list value by value, so that memory holds a buffer and not the file.

    A value that fails may be cut off at the end of the buffer, so it is tried again with twice the size.
    """
    decode, begin = json.JSONDecoder().raw_decode, re.compile(r"\s*\[\s*")
    text, pos, line, number = "", 0, 1, 0
    while True:
        try:
            mark = begin.match(text, pos)
            if not mark:
                expected = "Expecting ',' or ']'" if number else "Expecting '['"
                raise json.JSONDecodeError(expected, text, len(text) - len(text[pos:].lstrip()))
            value, pos = decode(text, mark.end())
        except json.JSONDecodeError as error:
            if more := source.read(max(BUFFER_CHARACTERS, len(text) - pos)):
                line += text.count("\n", 0, pos)
                text, pos = text[pos:] + more, 0
                continue
            if "".join(text[pos:].split()) not in (("]",) if number else ("", "[]")):
                place = f"line {line + text.count(chr(10), 0, error.pos)}, after row {number}"
                yield place, ValueError(f": not valid JSON ({error.msg}). Repair it.")
            return
        number, begin = number + 1, re.compile(r"\s*,\s*")
        yield f"row {number}", value


_PARSERS: Final = {".json": _parse_json, ".jsonl": _parse_lines, ".csv": _parse_csv, ".parquet": _parse_parquet}
