"""Streaming: row for row what tokenising at once gives, wherever, in whatever order and by whomever it is asked for."""

from __future__ import annotations

import json
import os
import pickle
import re
import tracemalloc

import pytest
import torch
from accelerate import skip_first_batches
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from loramoe.data import DatasetError, SftCollator, StreamReport, load_splits, stream, stream_dataset, tokenise_dataset

WORDS = st.text("ab é\n😀", min_size=1, max_size=12).filter(str.strip)
CUT = 20


@pytest.fixture
def streamed(tokenizer):
    """Streams a path; keywords change the settings."""

    def rows(path, **changes):
        return stream_dataset(path, **{"tokenizer": tokenizer, "max_seq_length": CUT, **changes})[0]

    return rows


@pytest.fixture
def folder(write, row):
    """A folder of 23 rows in three files, numbered by their task types, of several lengths."""
    numbered = [row(output="x" * (number % 17 + 1), task_type=number) for number in range(23)]
    write("rows/a.json", numbered[:8])
    write("rows/b.jsonl", numbered[8:15])
    return write("rows/c.json", numbered[15:]).parent


@given(
    rows=st.lists(st.tuples(st.text("ab é", max_size=8), WORDS), min_size=1, max_size=12),
    suffix=st.sampled_from(["json", "jsonl"]),
    ascii_only=st.booleans(),
    mark=st.booleans(),
    chat=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_those_of_the_stored_dataset(
    tokenizer, chat_tokenizer, row, tmp_path, rows, suffix, ascii_only, mark, chat
):
    rows = [row(input=text, output=output.strip(), task_type=number) for number, (text, output) in enumerate(rows)]
    lines = [json.dumps(entry, ensure_ascii=ascii_only) for entry in rows]
    file = tmp_path / f"rows.{suffix}"
    text = "\n\r\n".join(lines) if suffix == "jsonl" else " [" + " ,\n".join(lines) + "]"
    file.write_bytes(text.encode("utf-8-sig" if mark else "utf-8"))
    options = {"tokenizer": chat_tokenizer, "template": "chat"} if chat else {"tokenizer": tokenizer}
    options["max_seq_length"] = 60  # longer than every prompt, shorter than some answers
    stored, _ = tokenise_dataset(file, cache_dir=tmp_path / "cache", **options)
    streamed, report = stream_dataset(file, **options)
    assert len(streamed) == len(stored) == len(rows)
    assert list(streamed) == stored.to_list()
    assert streamed.__getitems__(range(len(rows))) == stored.to_list()
    assert report == StreamReport(len(rows), dict.fromkeys(range(len(rows)), 1), 60)


def test_the_report_says_what_is_known(folder, tokenizer, row, write):
    file = write("few.json", [row(), row(task_type=0), row()])
    _, report = stream_dataset(file, tokenizer, max_seq_length=64)
    assert str(report) == (
        "rows read: 3 (type 0: 1, type 1: 2)\n"
        "tokenised when they are needed, so that how many are longer than max_seq_length=64 is not known yet"
    )


def test_rows_are_found_in_any_order_in_all_files(folder, streamed):
    rows = streamed(folder)
    assert [rows[index]["task_types"] for index in (22, 0, 8, 7, 15, 14, -1)] == [22, 0, 8, 7, 15, 14, 22]
    with pytest.raises(IndexError, match="23 is out of bounds"):
        rows[23]


def test_workers_of_a_loader_may_use_it(folder, streamed):
    rows = streamed(folder)
    options = {"batch_size": 4, "collate_fn": SftCollator(0)}
    alone = list(DataLoader(rows, **options))
    shared = list(DataLoader(rows, num_workers=2, **options))
    assert len(alone) == len(shared) == 6
    for one, other in zip(alone, shared, strict=True):
        assert {name: tensor.tolist() for name, tensor in one.items()} == {
            name: tensor.tolist() for name, tensor in other.items()
        }


def test_it_can_be_pickled(folder, streamed):
    rows = streamed(folder)
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)


def test_a_resumed_loader_goes_on_at_the_right_row_and_reads_none_before(folder, streamed, monkeypatch):
    rows = streamed(folder)

    def loader():
        shuffled = {"shuffle": True, "generator": torch.Generator().manual_seed(3)}
        return DataLoader(rows, batch_size=2, collate_fn=lambda batch: [row["task_types"] for row in batch], **shuffled)

    whole, read, original = list(loader()), [], type(rows)._read
    monkeypatch.setattr(type(rows), "_read", lambda self, index: read.append(index) or original(self, index))
    assert list(skip_first_batches(loader(), 9)) == whole[9:]
    assert read == [number for batch in whole[9:] for number in batch]


def test_the_next_row_that_has_room_stands_in(write, row, streamed, tokenizer, caplog):
    long = "x" * CUT
    rows = [row(instruction=long if number in (1, 2, 5) else "Who?", task_type=number) for number in range(6)]
    file = write("rows.jsonl", rows)
    found = streamed(file)
    assert [entry["task_types"] for entry in found] == [0, 3, 3, 3, 4, 0]
    assert [entry["task_types"] for entry in found.__getitems__([5, 4, 2])] == [0, 4, 3]
    assert found.replaced == 5
    (record,) = caplog.records
    first = len(json.dumps(rows[0])) + 1
    assert record.getMessage() == (
        f"{file}: the prompt of the row at byte {first} fills max_seq_length={CUT}; the next row that has room stands "
        "in for it, and for all like it"
    )


def test_only_selected_rows_stand_in(write, row, streamed):
    file = write(
        "rows.json", [row(instruction="x" * CUT if number == 1 else "?", task_type=number) for number in range(5)]
    )
    some = streamed(file).select(torch.tensor([1, 4]).numpy())
    assert [entry["task_types"] for entry in some] == [4, 4]


@pytest.mark.parametrize("count", [1, 3])
def test_no_row_has_room(write, row, streamed, count):
    rows = streamed(write("rows.json", [row(instruction="x" * CUT)] * count))
    with pytest.raises(
        DatasetError, match=rf"none of the {count} rows has room .* max_seq_length=20 tokens or more\. Raise"
    ):
        rows[0]


def test_bad_rows_are_told_before_the_first_is_used(write, row, streamed):
    file = write("rows.jsonl", [row(), row(output=""), row(), row(task_type=3)])
    with pytest.raises(
        DatasetError, match=r"^2 problems in the data:\n.*line 2, .*\n.*line 4, field 'task_type': got 3"
    ):
        streamed(file, task_types=[0, 1])


def test_a_file_that_changes_is_refused(folder, streamed):
    rows, file = streamed(folder), folder / "b.jsonl"
    status = file.stat()
    message = re.escape(f"{file}: the file has changed since its rows were checked. Start again, and leave the data as")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(DatasetError, match=message):
        rows[9]
    assert rows[0]["task_types"] == 0, "the other files are as they were"
    with file.open("a") as stream:
        stream.write("\n")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DatasetError, match=message):
        rows[9]
    file.unlink()
    with pytest.raises(DatasetError, match=r"b\.jsonl: cannot be read \(No such file or directory\)"):
        rows[9]


def test_a_file_that_changes_while_it_is_checked_is_refused(folder, streamed, monkeypatch):
    locate = stream.locate_rows

    def changing(*args):
        yield from locate(*args)
        (folder / "b.jsonl").touch()

    monkeypatch.setattr(stream, "locate_rows", changing)
    with pytest.raises(DatasetError, match=r"b\.jsonl: the file has changed since its rows were checked"):
        streamed(folder)


def test_a_length_out_of_range(folder, streamed):
    with pytest.raises(ValueError, match=r"max_seq_length must be at least 2; got max_seq_length=1\. Raise it\."):
        streamed(folder, max_seq_length=1)


def test_a_row_takes_few_bytes(write, row, tokenizer):
    file = write("rows.jsonl", (row() for _ in range(20_000)))
    stream_dataset(file, tokenizer)  # what is imported on the way
    tracemalloc.start()
    rows, _ = stream_dataset(file, tokenizer)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 20_000
    assert kept < 20_000 * 16
    assert peak < 20_000 * 32


@pytest.mark.parametrize("percentage", [None, 25])
def test_splits_are_the_same_rows(folder, tokenizer, write, row, tmp_path, percentage):
    options = {"dataset_dir": folder, "max_seq_length": CUT, "cache_dir": tmp_path / "cache"}
    options |= (
        {"validation_split_percentage": percentage}
        if percentage
        else {"validation_file": write("test.json", [row(task_type=number) for number in range(3)])}
    )
    stored, streamed = load_splits(tokenizer, **options), load_splits(tokenizer, **options, streaming=True)
    assert list(streamed.train) == stored.train.to_list()
    assert list(streamed.validation) == stored.validation.to_list()
    assert streamed.train_report.rows == 23
    assert (streamed.validation_report is None) == (stored.validation_report is None) == (percentage is not None)


def test_streaming_writes_nothing(folder, tokenizer, tmp_path):
    load_splits(tokenizer, dataset_dir=folder, cache_dir=tmp_path / "cache", streaming=True)
    assert not (tmp_path / "cache").exists()
