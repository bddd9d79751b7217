"""From the bytes of a data file to the values in it, one row at a time.

Nothing here knows what a row should look like (`read` does): an item is any JSON value, with the place where it stands
in the file, so that it can be read again alone. A row is never larger than `MAX_ROW_BYTES`, which is what bounds memory
where a quotation mark is missing and the rest of the file seems to be one long text.

A `.jsonl` file is read by lines, below; a `.json` file by `json_list`.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple

MAX_ROW_BYTES: Final = 2**24
"""Most bytes of a row: far more than any `max_seq_length` keeps, and little next to the memory of a machine."""


@dataclass(frozen=True)
class Unparsable:
    """Stands where a value should be, and says why there is none.

    Attributes:
        problem: What is wrong and how to repair it, to be read after the place.
    """

    problem: str


class Item(NamedTuple):
    """One value of a file.

    Attributes:
        where: Its place in words: `row 3`, `line 3`.
        offset: Its place in the file, in bytes.
        length: Its length in bytes; 0 if it is unparsable.
        value: What it says, or `Unparsable`.
    """

    where: str
    offset: int
    length: int
    value: object


def parse_lines(stream: BinaryIO, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Item]:
    """Reads a `.jsonl` file: one value per line, blank lines left out.

    Args:
        stream: The file, at its beginning.
        max_row_bytes: Most bytes of a line.

    Yields:
        The items; a broken line is one `Unparsable` and not the end of the reading.
    """
    number, offset = 0, skip_mark(stream)
    while line := stream.readline(max_row_bytes + 1):  # bytes, so that a line that is not UTF-8 spoils no other
        number += 1
        if len(line) > max_row_bytes:
            yield Item(f"line {number}", offset, 0, too_long(max_row_bytes))
        elif line.strip():
            yield Item(f"line {number}", offset, len(line), _loads(line))
        offset += len(line)
        while not line.endswith(b"\n") and (line := stream.readline(max_row_bytes)):
            offset += len(line)


def skip_mark(stream: BinaryIO) -> int:
    """Moves a file that was just opened past its byte order mark.

    Args:
        stream: The file.

    Returns:
        Bytes of the mark, 0 if there is none.
    """
    mark = codecs.BOM_UTF8
    return stream.seek(len(mark) if stream.read(len(mark)) == mark else 0)


def too_long(max_row_bytes: int) -> Unparsable:
    """What stands for a row that is longer than memory should be asked to hold.

    Args:
        max_row_bytes: The most that a row may have.

    Returns:
        The words for it.
    """
    fix = "Shorten it; if it should not be one row, look for a missing quotation mark, bracket or line break."
    return Unparsable(f": longer than {max_row_bytes:,} bytes, the most of a row. {fix}")


def not_utf8(byte: int) -> Unparsable:
    """What stands for text in another encoding."""
    return Unparsable(f": not UTF-8 (byte {byte:#04x}). Save the file as UTF-8.")


def not_json(message: str, column: int) -> Unparsable:
    """What stands for text that is not JSON.

    Args:
        message: What the decoder says.
        column: Where in the line, from 1.

    Returns:
        The words for it.
    """
    hint = " One object per line belongs in a .jsonl file." if message == "Extra data" else ""
    return Unparsable(f", column {column}: not valid JSON ({message}). Repair it.{hint}")


def beyond_python(error: Exception) -> Unparsable:
    """What stands for valid JSON that is too much: an integer of thousands of digits, brackets nested without end."""
    return Unparsable(f": JSON that cannot be read ({error}). Repair it.")


def _loads(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return not_utf8(line[error.start])
    except json.JSONDecodeError as error:
        return not_json(error.msg, error.colno)
    except (ValueError, RecursionError) as error:
        return beyond_python(error)
