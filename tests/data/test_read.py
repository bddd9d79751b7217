"""Reading: samples come back as they were written, whatever the kind of file; faults are named with file and line."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramoe.data import DatasetError, read, read_samples

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
ROWS = st.fixed_dictionaries({"instruction": WORDS, "output": WORDS, "task_type": st.integers(-(10**17), 10**17)})


def fields(sample):
    question, answer = sample.messages
    return {"instruction": question["content"], "output": answer["content"], "task_type": sample.task_type}


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(ROWS, min_size=1, max_size=5),
    ascii_only=st.booleans(),
    mark=st.booleans(),
    buffer=st.integers(1, 40),
    space=st.text(" \n\t\r", max_size=40),
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_rows_survive_the_file(tmp_path_factory, suffix, rows, ascii_only, mark, buffer, space):
    encoded = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    comma = f"{space},{space}"
    text = "\n\r\n".join(encoded) if suffix == ".jsonl" else f"[{space}{comma.join(encoded)}{space}]{space}"
    file = tmp_path_factory.mktemp("rows") / f"rows{suffix}"
    file.write_bytes(text.encode("utf-8-sig" if mark else "utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "BUFFER_CHARACTERS", buffer)
        assert [fields(sample) for sample in read_samples(file)] == rows


@pytest.mark.parametrize("kind", ["JSON", "csv", "parquet", "jsonl.gz", "csv.zst", "parquet.gz"])
def test_kinds_and_compressions(write, kind):
    rows = [
        {"instruction": "Who?", "output": "Me.", "task_type": 1},
        {"instruction": 'NA\n"me", who?', "output": "007", "task_type": 0},
    ]
    assert [fields(sample) for sample in read_samples(write(f"rows.{kind}", rows))] == rows


def test_a_json_file_may_have_one_sample_a_line(write, row, tmp_path):
    write("rows.jsonl", [row()] * 3).rename(tmp_path / "rows.json")
    assert len(list(read_samples(tmp_path / "rows.json"))) == 3


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_memory_does_not_grow_with_the_file(write, row, name, monkeypatch):
    monkeypatch.setattr(read, "BUFFER_CHARACTERS", 2**13)
    file = write(name, (row(output="word " * 100) for _ in range(1_000)))
    tracemalloc.start()
    assert sum(1 for _ in read_samples(file)) == 1_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < file.stat().st_size / 2


def test_equal_faults_are_named_once_and_ten_kinds_at_most(write, row):
    write("rows/a.jsonl", [row(task_type=...)] * 3)
    folder = write("rows/b.json", [row(output=number) for number in range(20)]).parent
    with pytest.raises(DatasetError) as caught:
        list(read_samples(folder))
    first, *lines = str(caught.value).split("\n")
    assert first.startswith("23 faults")
    assert len(lines) == 10
    assert "a.jsonl, line 1, field 'task_type'" in lines[0]
    assert "3 samples" in lines[0]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'["a",\n{"b" 1}]', ", line 2, after row 1: not valid JSON (Expecting ':' delimiter)"),
        ("a.json", b'["a"] x', ", line 1, after row 1: not valid JSON (Expecting ',' or ']')"),
        ("a.json", b'["a', ", line 1, after row 0: not valid JSON (Unterminated string"),
        ("a.json", b'["a",\n"\xff"]', ": not UTF-8 (byte 0xff)"),
        ("a.json", b"[]", ": the file holds no samples"),
        ("a.json", b"[" * 100_000, ": cannot be read (maximum recursion depth"),
        ("a.jsonl", b'\n{"a" 1}', ", line 2, column 6: not valid JSON (Expecting ':' delimiter)"),
        ("a.jsonl", b'"a"\n"\xff"', ", line 2: not UTF-8 (byte 0xff)"),
        ("a.csv", b"instruction,output,task_type\na,b,1,2\n", ", line 2: has 1 more fields"),
        ("a.csv", b'instruction,output\n"a', "a.csv: cannot be read (unexpected end of data)"),
        ("a.parquet", b"PAR", "a.parquet: cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 999, mtime=0)[:20], "a.jsonl.gz: cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        list(read_samples(tmp_path / name, default_task_type=0))
    assert str(tmp_path / name) in str(caught.value)
    assert words in str(caught.value)


def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(DatasetError, match=r"link\.json: cannot be read"):
        list(read_samples(tmp_path))
