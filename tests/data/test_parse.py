"""Reading lines: values with their places in the file, and a bound on what is taken for one row."""

from __future__ import annotations

import codecs
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramoe.data.parse import Unparsable, parse_lines, skip_mark

LINES = st.lists(st.one_of(st.just(""), st.dictionaries(st.text(max_size=3), st.integers() | st.text(), max_size=3)))


@given(lines=LINES, ascii_only=st.booleans(), end=st.sampled_from(["\n", "\r\n"]), mark=st.booleans())
def test_items_can_be_read_again_from_their_places(lines, ascii_only, end, mark):
    texts = ["" if line == "" else json.dumps(line, ensure_ascii=ascii_only) for line in lines]
    content = end.join(texts).encode("utf-8-sig" if mark else "utf-8")
    items = list(parse_lines(io.BytesIO(content)))
    assert [item.where for item in items] == [f"line {number}" for number, line in enumerate(lines, 1) if line != ""]
    assert [item.value for item in items] == [line for line in lines if line != ""]
    for item in items:
        assert json.loads(content[item.offset : item.offset + item.length]) == item.value


@pytest.mark.parametrize("end", [b"\n", b"", b"\n\n[2]"])
@pytest.mark.parametrize("extra", [1, 50, 51, 52, 500])
def test_a_line_that_is_too_long_is_one_bad_row(extra, end):
    first, long, *rest = parse_lines(io.BytesIO(b"[1]\n" + b"x" * (50 + extra) + end), max_row_bytes=50)
    assert (first.value, long.where) == ([1], "line 2")
    assert long.value.problem.startswith(": longer than 50 bytes, the most of a row. Shorten it; if it should not be")
    assert [(item.where, item.value) for item in rest] == ([("line 4", [2])] if end.strip() else [])


def test_a_line_may_be_as_long_as_the_bound():
    (item,) = parse_lines(io.BytesIO(b'"' + b"x" * 47 + b'"\n'), max_row_bytes=50)
    assert item.length == 50


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a" 1}', ", column 6: not valid JSON (Expecting ':' delimiter). Repair it."),
        (b"1 2", ", column 3: not valid JSON (Extra data). Repair it. One object per line belongs in a .jsonl file."),
        (b'"\xff"', ": not UTF-8 (byte 0xff). Save the file as UTF-8."),
        (b"[" * 100_000, ": JSON that cannot be read (maximum recursion depth exceeded"),
    ],
)
def test_a_broken_line_spoils_no_other(line, problem):
    first, bad, last = parse_lines(io.BytesIO(b"1\n" + line + b"\n3"))
    assert (first.value, last.value) == (1, 3)
    assert bad.where == "line 2"
    assert isinstance(bad.value, Unparsable)
    assert bad.value.problem.startswith(problem)


@pytest.mark.parametrize("rest", [b"", b"a", b"abc"])
def test_the_mark_is_skipped(rest):
    for mark in (b"", codecs.BOM_UTF8):
        stream = io.BytesIO(mark + rest)
        assert skip_mark(stream) == len(mark)
        assert stream.read() == rest
