"""Reading a list piece by piece: what `json.loads` says of the whole, at every size of the buffer, in little memory."""

from __future__ import annotations

import codecs
import io
import json
import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramoe.data.json_list import parse_list
from loramoe.data.parse import Unparsable

BUFFERS = st.integers(1, 40)
NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.none())
VALUES = st.recursive(
    NUMBERS | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
BLANKS = st.text(" \t\n\r", max_size=3)


def same(a: object, b: object) -> bool:
    """Equality in which a NaN is one."""
    return repr(a) == repr(b) if isinstance(b, float) and math.isnan(b) else json.dumps(a) == json.dumps(b)


def parse(content: bytes, **options: int) -> list:
    return list(parse_list(io.BytesIO(content), **options))


@given(values=st.lists(VALUES, max_size=6), buffer=BUFFERS, data=st.data(), mark=st.booleans())
def test_every_buffer_gives_the_values_and_their_places(values, buffer, data, mark):
    encoder = json.JSONEncoder(ensure_ascii=data.draw(st.booleans()))
    pieces = [encoder.encode(value).encode("utf-8", "replace").decode() for value in values]  # no half surrogate pairs
    spaced = [data.draw(BLANKS) + piece + data.draw(BLANKS) for piece in pieces]
    content = (data.draw(BLANKS) + "[" + ",".join(spaced) + "]" + data.draw(BLANKS)).encode()
    content = codecs.BOM_UTF8 + content if mark else content
    items = parse(content, buffer_bytes=buffer)
    expected = json.loads(content.decode("utf-8-sig"))
    assert [item.where for item in items] == [f"row {number}" for number in range(1, len(values) + 1)]
    for item, value in zip(items, expected, strict=True):
        assert same(item.value, value)
        assert same(json.loads(content[item.offset : item.offset + item.length]), value)


ALPHABET = st.text(st.sampled_from('[]{},:"\\ \nuntrfalse-+.eE0123é'), max_size=12)
ROWS = '[{"a": "x\\u00e9", "b": [1, -2.5e+3]},\n {"é": null, "d": "\\"]"},\n true, -Infinity]'


@given(st.integers(0, len(ROWS)), st.integers(0, 6), ALPHABET, BUFFERS)
def test_broken_text_is_told_of_as_the_whole_would_be(start, length, damage, buffer):
    text = ROWS[:start] + damage + ROWS[start + length :]
    items = parse(text.encode(), buffer_bytes=buffer)
    whole = loads(text)
    if isinstance(whole, json.JSONDecodeError):
        if text.strip() and not whole.msg.startswith("Illegal trailing comma"):  # which Python 3.13 says of [1,]
            place = f"line {whole.lineno}, column {whole.colno}: not valid JSON ({whole.msg}). Repair it."
            assert (items[-1].where + items[-1].value.problem).startswith(place)
    elif isinstance(whole, list):
        assert [repr(item.value) for item in items] == [repr(value) for value in whole]
    else:
        assert items[0].value.problem.startswith(": expected a list of rows, got ")


def loads(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return error


@pytest.mark.parametrize("buffer", [1, 5, 1000])
def test_rows_before_the_broken_one_are_read(buffer):
    first, second, broken = parse(b'[{"a": 1},\n {"b": "\xc3\xa9"},\n {"c" 3}, {"d": 4}]', buffer_bytes=buffer)
    assert (first.value, second.value) == ({"a": 1}, {"b": "é"})
    assert broken.where == "line 3"
    assert broken.value == Unparsable(", column 7: not valid JSON (Expecting ':' delimiter). Repair it.")


@pytest.mark.parametrize("buffer", [1, 4, 1000])
@pytest.mark.parametrize("cut", [b"\xff, 3]", b"\xc3"])
def test_text_that_is_not_utf8_ends_the_reading_where_it_stands(buffer, cut):
    items = parse(b'["a",\n"b",\n' + cut, buffer_bytes=buffer)
    assert [item.value for item in items[:-1]] == ["a", "b"]
    assert items[-1].where == "line 3"
    assert items[-1].value == Unparsable(f": not UTF-8 (byte {cut[0]:#04x}). Save the file as UTF-8.")


@pytest.mark.parametrize("buffer", [1, 7, 1000])
@pytest.mark.parametrize("content", [b'["a",\n  "%s"]', b'["a",\n  "%s'])
def test_a_row_that_does_not_end_is_given_up(content, buffer):
    *good, bad = parse(content % (b"x" * 100), max_row_bytes=50, buffer_bytes=buffer)
    assert [item.value for item in good] == ["a"]
    assert bad.where == "line 2, column 3"
    assert bad.value.problem == (
        ": longer than 50 bytes, the most of a row. Shorten it; if it should not be one row, look for a missing "
        "quotation mark, bracket or line break."
    )


def test_a_row_may_be_as_long_as_the_bound():
    assert [item.length for item in parse(b'["%s"]' % (b"x" * 48), max_row_bytes=50, buffer_bytes=3)] == [50]


@pytest.mark.parametrize("content", [b"", b" \n", codecs.BOM_UTF8, codecs.BOM_UTF8 + b"\n", b"[]", b" [ \n] "])
def test_nothing_is_no_item(content):
    assert parse(content, buffer_bytes=1) == []


@pytest.mark.parametrize(
    ("content", "message"), [(b"[" * 100_000, "maximum recursion depth"), (b"[1,\n" + b"[" * 99_999, "maximum")]
)
def test_brackets_without_end(content, message):
    bad = parse(content)[-1]
    assert bad.where == f"line {1 + content.count(10)}"
    assert message in bad.value.problem


def test_memory_is_that_of_one_buffer():
    row = json.dumps({"instruction": "Who?", "output": "word " * 40})
    content = ("[" + ",\n".join([row] * 40_000) + "]").encode()
    assert len(content) > 8_000_000
    stream = io.BytesIO(content)
    tracemalloc.start()
    assert sum(1 for _ in parse_list(stream, buffer_bytes=2**16)) == 40_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000
