"""A list of JSON values, read one value at a time.

The decoder of the standard library takes a text and says where a value in it ends. Here it is given the part of the
file that is in memory, and more of the file when the value turns out to end beyond it. Whether a value is cut off or
broken, the decoder does not say; but where a text was cut off, it fails at the very end, or complains of a string that
does not end. Everything else is broken, however much more is read.

So memory holds one buffer, or one row if that is longer; and a broken row is told of at once, at its place, without
reading the rest of the file in the hope that it will close a bracket.
"""

from __future__ import annotations

import codecs
import json
import re
import reprlib
from collections.abc import Iterator
from typing import BinaryIO, Final, NoReturn

from loramoe.data.parse import (
    MAX_ROW_BYTES,
    Item,
    Unparsable,
    beyond_python,
    not_json,
    not_utf8,
    skip_mark,
    too_long,
)

BUFFER_BYTES: Final = 2**20
BLANKS: Final = re.compile(r"[ \t\n\r]*")
LONGEST_TOKEN: Final = 16
"""At least the characters of the longest piece that the decoder refuses as long as it is not whole: `-Infinity`."""


class _BrokenError(Exception):
    """The list cannot be read any further."""

    def __init__(self, where: str, value: Unparsable) -> None:
        self.where = where
        self.value = value


def parse_list(
    stream: BinaryIO, max_row_bytes: int = MAX_ROW_BYTES, buffer_bytes: int = BUFFER_BYTES
) -> Iterator[Item]:
    """Reads a `.json` file that is one list.

    Args:
        stream: The file, at its beginning.
        max_row_bytes: Most bytes of a value.
        buffer_bytes: Bytes that are read at once.

    Yields:
        The items. Where the list is broken, an `Unparsable` is the last one: nobody knows where the next would begin.
    """
    source = _Source(stream, max_row_bytes, buffer_bytes)
    try:
        if source.peek():
            yield from _items(source)
            if source.peek():
                source.fail("Extra data")
    except _BrokenError as broken:
        yield Item(broken.where, source.offset, 0, broken.value)


def _items(source: _Source) -> Iterator[Item]:
    if source.peek() != "[":
        raise _BrokenError("top level", _no_list(source))
    source.advance(1)
    if source.peek() == "]":
        source.advance(1)
        return
    number, following = 0, ","
    while following == ",":
        number += 1
        source.peek()  # stands at the value now
        offset = source.offset
        value = source.value()
        yield Item(f"row {number}", offset, source.offset - offset, value)
        following = source.peek()
        if following not in (",", "]"):  # which the empty text at the end of the file is neither
            source.fail("Expecting ',' delimiter")
        source.advance(1)


def _no_list(source: _Source) -> Unparsable:
    value = source.value()
    if source.peek():
        source.fail("Extra data")
    fix = "Put the rows in one list, [{...}, {...}], or one per line in a .jsonl file."
    return Unparsable(f": expected a list of rows, got {reprlib.repr(value)} ({type(value).__name__}). {fix}")


class _Source:
    """The part of a file that is in memory, and a place in it.

    Attributes:
        offset: The place, in bytes from the beginning of the file.
    """

    def __init__(self, stream: BinaryIO, max_row_bytes: int, buffer_bytes: int) -> None:
        self.offset = skip_mark(stream)
        self._stream = stream
        self._max_row_bytes = max_row_bytes
        self._buffer_bytes = buffer_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._decode = json.JSONDecoder().raw_decode
        self._bad_byte: int | None = None
        self._ended = False
        self._text = ""
        self._pos = 0
        self._line, self._column = 1, 1  # of the first character of the text

    def peek(self) -> str:
        """Moves past blanks; returns the character that is there, `""` at the end of the file."""
        while True:
            blanks = BLANKS.match(self._text, self._pos)
            self.advance(blanks.end() - self._pos if blanks else 0)
            if self._pos < len(self._text):
                return self._text[self._pos]
            if not self._more():
                return ""

    def advance(self, characters: int) -> None:
        """Moves past characters that are in memory and have one byte each."""
        self._pos += characters
        self.offset += characters

    def value(self) -> object:
        """Reads the value at the place, and moves past it."""
        while True:
            try:
                value, end = self._decode(self._text, self._pos)
                # 1 may become 12, or 1.5e+3
                cut_off = isinstance(value, (int, float)) and end + LONGEST_TOKEN > len(self._text)
                if not (cut_off and self._more()):
                    break
            except json.JSONDecodeError as error:
                cut_off = error.pos + LONGEST_TOKEN > len(self._text) or error.msg.startswith("Unterminated string")
                if not (cut_off and self._more()):
                    self.fail(error.msg, error.pos)
            except (ValueError, RecursionError) as error:
                raise _BrokenError(f"line {self._place(self._pos)[0]}", beyond_python(error)) from None
        length = len(self._text[self._pos : end].encode())
        if length > self._max_row_bytes:
            self._fail_as_too_long()
        self._pos, self.offset = end, self.offset + length
        return value

    def fail(self, message: str, position: int | None = None) -> NoReturn:
        """Gives up.

        Args:
            message: What is wrong.
            position: Where in the text; None: at the place.

        Raises:
            _BrokenError: Always.
        """
        line, column = self._place(self._pos if position is None else position)
        raise _BrokenError(f"line {line}", not_json(message, column))

    def _fail_as_too_long(self) -> NoReturn:
        line, column = self._place(self._pos)
        raise _BrokenError(f"line {line}, column {column}", too_long(self._max_row_bytes))

    def _place(self, position: int) -> tuple[int, int]:
        """Returns line and column of a position in the text, both from 1."""
        lines = self._text.count("\n", 0, position)
        column = position - self._text.rindex("\n", 0, position) if lines else self._column + position
        return self._line + lines, column

    def _more(self) -> bool:
        """Forgets the text before the place and reads on; returns False at the end of the file."""
        if self._bad_byte is not None:
            raise _BrokenError(f"line {self._place(len(self._text))[0]}", not_utf8(self._bad_byte))
        if len(self._text) - self._pos > self._max_row_bytes:
            self._fail_as_too_long()
        if self._ended:
            return False
        self._line, self._column = self._place(self._pos)
        self._text = self._text[self._pos :]
        self._pos = 0
        # Twice as much each time, so that a row that is longer than the buffer is not decoded over and over.
        content = self._stream.read(max(self._buffer_bytes, len(self._text)))
        self._ended = not content
        try:
            self._text += self._decoder.decode(content, final=self._ended)
        except UnicodeDecodeError as error:  # what stands before it still counts
            self._text += error.object[: error.start].decode("utf-8")
            self._bad_byte = error.object[error.start]
        return True
