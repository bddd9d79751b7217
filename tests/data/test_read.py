"""Reading: good rows come back as they were written, bad ones are named with file, row, field, value and fix."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramoe.data import DatasetError, data_files, iter_rows

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
ROWS = st.fixed_dictionaries(
    {
        "instruction": WORDS,
        "input": st.text(st.characters(exclude_categories=["Cs"])),
        "output": WORDS,
        "task_type": st.integers(-(2**63), 2**63 - 1),
    }
)


@given(rows=st.lists(ROWS, min_size=1, max_size=5), ascii_only=st.booleans(), mark=st.booleans())
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSON"])
def test_rows_survive_the_file(tmp_path_factory, suffix, rows, ascii_only, mark):
    encoded = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    text = "\n".join(encoded) if suffix == ".jsonl" else f"[{', '.join(encoded)}]"
    file = tmp_path_factory.mktemp("rows") / f"rows{suffix}"
    file.write_bytes(text.encode("utf-8-sig" if mark else "utf-8"))
    assert list(iter_rows(file)) == rows


def test_a_missing_input_is_empty_and_other_fields_are_ignored(write, row):
    file = write("rows.json", [row(input=..., source="a book", id=7)])
    assert list(iter_rows(file)) == [{"instruction": "Who?", "input": "", "output": "Me.", "task_type": 1}]


def test_jsonl_may_have_blank_lines_and_windows_line_ends(tmp_path, row):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\r\n\r\n".join([json.dumps(row()).encode()] * 3) + b"\r\n")
    assert len(list(iter_rows(file))) == 3


def test_jsonl_is_read_in_little_memory(write, row):
    file = write("rows.jsonl", (row(output="word " * 50) for _ in range(10_000)))
    assert file.stat().st_size > 3_000_000
    tracemalloc.start()
    assert sum(1 for _ in iter_rows(file)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000


def test_a_folder_is_read_whole_in_the_order_of_names(write, row, tmp_path):
    write("b.json", [row(output="third")])
    write("a.jsonl", [row(output="first"), row(output="second")])
    write(".hidden.json", ["not a row"])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "figures").mkdir()
    assert [file.name for file in data_files(tmp_path)] == ["a.jsonl", "b.json"]
    assert [entry["output"] for entry in iter_rows(tmp_path)] == ["first", "second", "third"]


def test_the_home_directory_is_known(write, row, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = write("rows.json", [row()])
    assert data_files("~/rows.json") == [file]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction": ...}, "field 'instruction': missing; the row has ['input', 'output', 'task_type']. Add it."),
        ({"instruction": 7}, "field 'instruction': expected text, got 7 (int). Write it in quotes."),
        ({"instruction": " \n"}, r"field 'instruction': expected some text, got ' \n' (str). Fill it in, or remove"),
        (
            {"input": None},
            "field 'input': expected text, got None (NoneType). Write it in quotes, or leave the field out",
        ),
        (
            {"input": "a\ud800b"},
            r"field 'input': expected Unicode text, got half of a surrogate pair ('\ud800'). Remove",
        ),
        ({"output": ...}, "field 'output': missing; the row has ['instruction', 'input', 'task_type']. Add it."),
        ({"output": ""}, "field 'output': expected some text, got '' (str). Fill it in, or remove the row."),
        ({"output": ["a"]}, "field 'output': expected text, got ['a'] (list). Write it in quotes."),
        ({"task_type": ...}, "field 'task_type': missing; the row has ['instruction', 'input', 'output']. Add it."),
        ({"task_type": "1"}, "field 'task_type': expected an integer, got '1' (str). Write a number without quotes"),
        ({"task_type": 1.0}, "field 'task_type': expected an integer, got 1.0 (float). Write a number without quotes"),
        ({"task_type": True}, "field 'task_type': expected an integer, got True (bool). Write a number without quotes"),
        (
            {"task_type": 2**63},
            "field 'task_type': expected an integer of 64 bits, got 9223372036854775808 (int). Write",
        ),
        (
            {"task_type": 2},
            "field 'task_type': got 2, but the experts have the types 0, 1. Correct it, or add type 2 to",
        ),
    ],
)
@pytest.mark.parametrize(("name", "where"), [("rows.json", "row 2"), ("rows.jsonl", "line 2")])
def test_a_broken_row_is_named(write, row, name, where, changes, message):
    file = write(name, [row(), row(**changes), row()])
    with pytest.raises(DatasetError, match=re.escape(f"{file}, {where}, {message}")):
        list(iter_rows(file, task_types=[1, 0, 1]))


def test_any_task_type_is_taken_when_none_are_given(write, row):
    assert [entry["task_type"] for entry in iter_rows(write("rows.json", [row(task_type=-5)]))] == [-5]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            b'[\n{"a": 1},\n{"a" 1}]',
            ", line 3, column 6: not valid JSON (Expecting ':' delimiter). Repair it.",
        ),
        (
            "a.json",
            b'{"a": 1}\n{"a": 1}',
            ", line 2, column 1: not valid JSON (Extra data). Repair it. One object per line",
        ),
        (
            "a.json",
            b'{"data": []}',
            ", top level: expected a list of rows, got {'data': []} (dict). Put the rows in one",
        ),
        (
            "a.json",
            b'["x"]',
            ", row 1: expected an object with instruction, input, output and task_type, got 'x' (str).",
        ),
        ("a.json", b'["a",\n"\xff"]', ", line 2: not UTF-8 (byte 0xff). Save the file as UTF-8."),
        ("a.json", b"[]", ": the file holds no rows. Add some, or remove the file."),
        ("a.json", b"", ": the file holds no rows. Add some, or remove the file."),
        ("a.json", b"[" * 100_000, ", line 1: JSON that cannot be read (maximum recursion depth exceeded"),
        ("a.json", b"[" + b"1" * 5_000 + b"]", ", line 1: JSON that cannot be read (Exceeds the limit"),
        ("a.jsonl", b'\n{"a" 1}', ", line 2, column 6: not valid JSON (Expecting ':' delimiter). Repair it."),
        (
            "a.jsonl",
            b"\n[1]",
            ", line 2: expected an object with instruction, input, output and task_type, got [1] (list)",
        ),
        ("a.jsonl", b'\n"\xff"', ", line 2: not UTF-8 (byte 0xff). Save the file as UTF-8."),
        ("a.jsonl", b"\n\n", ": the file holds no rows. Add some, or remove the file."),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=re.escape(f"{file}{message}")):
        list(iter_rows(file))


def test_several_problems_are_reported_at_once(write, row, tmp_path):
    write("a.jsonl", [row(output=""), row(), row(input=3, task_type="0")])
    (tmp_path / "b.json").write_text("[")
    with pytest.raises(DatasetError) as caught:
        list(iter_rows(tmp_path))
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 problems in the data:"
    ends = ["a.jsonl, line 1, field 'output'", "a.jsonl, line 3, field 'input'", "a.jsonl, line 3, field 'task_type'"]
    for line, start in zip(lines[1:], [*ends, "b.json, line 1, column 2"], strict=True):
        assert line.startswith(f"  {tmp_path}/{start}: ")


def test_of_many_problems_ten_are_shown_and_all_are_counted(write, row):
    file = write("rows.jsonl", [row(output="")] * 1234)
    with pytest.raises(DatasetError, match=r"^1,234 problems in the data, the first 10 are:") as caught:
        list(iter_rows(file))
    assert str(caught.value).count("field 'output'") == 10


def test_a_long_value_is_shortened(write, row):
    file = write("rows.json", [row(task_type="x" * 10_000)])
    with pytest.raises(DatasetError, match=r"got 'xxx[x.]+xxx' \(str\)") as caught:
        list(iter_rows(file))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("path", ["", "nowhere.json", "nowhere/"])
def test_a_path_that_is_not_there(path):
    with pytest.raises(
        DatasetError, match=r"data path '.*' does not exist or is out of reach \(looked in /.*\)\. Correct the path\."
    ):
        data_files(path)


@pytest.mark.parametrize(("name", "seen"), [("rows.csv", "'.csv'"), ("rows", "'no suffix'")])
def test_a_file_of_another_kind(tmp_path, name, seen):
    (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=f"expected a .json or .jsonl file, got {seen}. Convert it."):
        data_files(tmp_path / name)


def test_a_folder_without_data(tmp_path):
    with pytest.raises(DatasetError, match=r"the folder holds no \.json or \.jsonl file\. Name the folder that holds"):
        data_files(tmp_path)


@pytest.mark.parametrize(("beside", "also"), [(True, "besides its own"), (False, "but none itself")])
def test_data_in_a_subfolder_is_not_mixed_in(write, row, tmp_path, beside, also):
    write("train/train.json", [row()])
    if beside:
        write("test.json", [row()])
    message = f"the subfolder 'train' holds data files, {also}; .* such as {tmp_path}/train."
    with pytest.raises(DatasetError, match=message):
        data_files(tmp_path)


def test_a_directory_with_the_name_of_a_file(tmp_path):
    (tmp_path / "rows.json").mkdir()
    with pytest.raises(
        DatasetError, match=r"rows\.json: cannot be read \(Is a directory\)\. Make it a file that you may"
    ):
        list(iter_rows(tmp_path))


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    def refuse(folder: Path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(
        DatasetError, match=r"cannot be listed \(Permission denied\)\. Make it a folder that you may read"
    ):
        data_files(tmp_path)
