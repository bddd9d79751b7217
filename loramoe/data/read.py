"""Reading data files by plain Python: each sample with its place, each fault with file, line and field.

The `datasets` library reads faster where it streams (`pipeline`), but reads a `.json` list whole and guesses the types
of CSV; and when it fails it does not say where. So this reads what the library reads badly, and reads again what the
library has refused.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TextIO, TypeVar, cast

from loramoe.data.formats import Sample, SampleReader, Unparsable
from loramoe.data.sources import DatasetError, data_files, kind_of

MAX_FAULTS_SHOWN: Final = 10

BUFFER_CHARACTERS: Final = 2**20
LONGEST_TOKEN: Final = 16
"""At least the characters of the longest piece that the JSON decoder refuses until it is whole: `-Infinity`."""

T = TypeVar("T")


class Located(NamedTuple):
    """A value and its place.

    Attributes:
        where: The place in words: `train.jsonl, line 3`.
        value: Any value, or `Unparsable`.
    """

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
    for _, sample in checked(locate(data_files(path)), reader):
        yield sample


def checked(values: Iterable[Located], check: Callable[[object], T | list[str]]) -> Iterator[tuple[str, T]]:
    """Checks values; `read_samples` is this with the check of a sample.

    Args:
        values: The values, with their places.
        check: Makes of a value what is to be yielded, or a list of problems.

    Yields:
        The place, and what `check` made of the value; after the first fault, nothing.

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
    lines = [
        f"{where}{problem}" + (f" ({times:,} samples like this)" if times > 1 else "")
        for problem, (where, times) in faults.items()
    ]
    if lines:
        raise DatasetError("\n  ".join(lines if len(lines) == 1 else [f"{count:,} faults in the data:", *lines]))


def locate(files: Sequence[Path]) -> Iterator[Located]:
    """Reads the values of files, good and bad."""
    for file in files:
        kind, _ = kind_of(file)
        empty = True
        with _open(file) as stream:
            try:
                for where, value in _PARSERS[kind](stream):
                    empty = False
                    yield Located(f"{file}, {where}", value)
            except (EOFError, OSError, ValueError) as error:  # of what decompresses, or of parquet
                empty = False
                yield Located(str(file), Unparsable(f": cannot be read ({error}). Write the file again."))
        if empty:
            yield Located(str(file), Unparsable(": the file holds no samples. Add some, or remove the file."))


def _open(file: Path) -> BinaryIO:
    """Opens a file, decompressing it."""
    import pyarrow as pa

    compression = kind_of(file)[1]
    try:
        if compression == ".gz":
            return cast(BinaryIO, gzip.open(file))
        stream = file.open("rb")
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror}). Make it a file that you may read.") from error
    return io.BufferedReader(pa.CompressedInputStream(stream, "zstd")) if compression else stream


def _parse_lines(stream: BinaryIO) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(stream, start=1):  # bytes, so that a line that is not UTF-8 spoils no other
        if line.strip():
            yield f"line {number}", _loads(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _loads(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unparsable(f": {_not_utf8(error)}")
    except json.JSONDecodeError as error:
        return Unparsable(f", column {error.colno}: not valid JSON ({error.msg}). Repair it.")
    except (ValueError, RecursionError) as error:
        return Unparsable(f": JSON that cannot be read ({error}). Repair it.")


def _parse_csv(stream: BinaryIO) -> Iterator[tuple[str, object]]:
    csv.field_size_limit(sys.maxsize)
    with io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        try:
            for values in reader:
                extra = len(values.pop(None, ()))  # where csv puts what the header does not name
                problem = f": has {extra} more fields than the header names. Put quotes around text with commas."
                yield f"line {reader.line_num}", Unparsable(problem) if extra else values
        except UnicodeDecodeError as error:
            yield f"after line {reader.line_num}", Unparsable(f": {_not_utf8(error)}")
        except csv.Error as error:
            yield f"line {reader.reader.line_num}", Unparsable(f": not valid CSV ({error}). Repair it.")


def _parse_parquet(stream: BinaryIO) -> Iterator[tuple[str, object]]:
    import pyarrow.parquet as pq

    file = stream if stream.seekable() else io.BytesIO(stream.read())
    number = 0
    for batch in pq.ParquetFile(file).iter_batches(1_000):
        for value in batch.to_pylist():
            number += 1
            yield f"row {number}", value


def _parse_json(stream: BinaryIO) -> Iterator[tuple[str, object]]:
    """Reads a list; or lines, if the file begins with an object."""
    if stream.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":  # type: ignore[attr-defined]
        for where, value in _parse_lines(stream):
            yield where, Unparsable(_NO_LIST) if isinstance(value, Unparsable) else value
            if isinstance(value, Unparsable):
                return
        return
    with io.TextIOWrapper(stream, "utf-8-sig") as source:
        yield from _parse_list(source)


def _parse_list(source: TextIO) -> Iterator[tuple[str, object]]:
    """Reads a list value by value, so that memory holds one buffer and not the file.

    The decoder does not say whether a value is broken or cut off at the end of the buffer. But where it is cut off, the
    decoder fails at the very end, or at a string that does not end.
    """
    decode = json.JSONDecoder().raw_decode
    text, pos, line, number = "", 0, 1, 0
    while True:
        begin = (_NEXT if number else _FIRST).match(text, pos)
        try:
            if not begin:
                missing = "Expecting ',' or ']'" if number else "Expecting '['"
                raise json.JSONDecodeError(missing, text, len(text) - len(text[pos:].lstrip()))
            value, pos = decode(text, begin.end())
        except json.JSONDecodeError as error:
            end = (_END if number else _EMPTY).fullmatch(text, pos)
            cut_off = end or error.pos + LONGEST_TOKEN > len(text) or error.msg.startswith("Unterminated string")
            line += text.count("\n", 0, pos)
            try:
                more = source.read(max(BUFFER_CHARACTERS, len(text) - pos)) if cut_off else ""
            except UnicodeDecodeError as broken:
                yield f"after line {line}", Unparsable(f": {_not_utf8(broken)}")
                return
            if not more and not end:
                place = f"line {line + text.count(chr(10), pos, error.pos)}"
                yield place, Unparsable(f", after row {number}: not valid JSON ({error.msg}). Repair it.")
            if not more:
                return
            text, pos = text[pos:] + more, 0
        except (ValueError, RecursionError) as error:  # thousands of digits, brackets without end
            yield f"row {number + 1}", Unparsable(f": JSON that cannot be read ({error}). Repair it.")
            return
        else:
            number += 1
            yield f"row {number}", value


_NO_LIST: Final = ": expected a list of samples, [{…}, {…}], or one sample a line, {…}. Write it so."
_FIRST, _NEXT = re.compile(r"\s*\[\s*"), re.compile(r"\s*,\s*")
_EMPTY, _END = re.compile(r"\s*(\[\s*\]\s*)?"), re.compile(r"\s*\]\s*")

_PARSERS: Final[dict[str, Callable[[BinaryIO], Iterator[tuple[str, object]]]]] = {
    ".json": _parse_json,
    ".jsonl": _parse_lines,
    ".csv": _parse_csv,
    ".parquet": _parse_parquet,
}


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte {error.object[error.start]:#04x}). Save the file as UTF-8."


def conversations(files: list[Path], reader: SampleReader, most: int | None) -> Iterator[dict[str, Any]]:
    """Reads samples as rows of a data set of the `datasets` library."""
    for _, sample in checked(islice(locate(files), most), reader):
        yield {"messages": sample.messages, "task_type": sample.task_type}


def conversation_features() -> Any:
    """The columns of `conversations`."""
    from datasets import Features, Value

    return Features({"messages": [{"role": Value("string"), "content": Value("string")}], "task_type": Value("int64")})
