"""Shards: where they begin and end, that they are written whole, and that opening them does not load them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pytest

from loramoe.data import get_template, shards
from loramoe.data.report import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    return tmp_path / "shards"


@pytest.fixture
def make(tokenizer, folder):
    """Writes the shards of a file."""

    def write_shards(file, num_proc=1):
        encoder = get_template("release", tokenizer)
        return shards.write_shards([file], folder, encoder, max_seq_length=64, task_types=None, num_proc=num_proc)

    return write_shards


def rows_of(file: Path) -> list[int]:
    with pa.memory_map(str(file)) as stream:
        return pa.ipc.open_stream(stream).read_all()["task_types"].to_pylist()


@pytest.mark.parametrize("num_proc", [1, 2])
@pytest.mark.parametrize(
    ("most", "value", "sizes"),
    [("SHARD_ROWS", 4, [4, 4, 2]), ("SHARD_BYTES", 200, [3, 3, 3, 1]), ("BATCH_ROWS", 3, [10])],
)
def test_a_shard_ends_at_so_many_rows_or_bytes(make, write, row, folder, monkeypatch, num_proc, most, value, sizes):
    file = write("rows.jsonl", [row(task_type=number) for number in range(10)])
    assert 200 / 3 <= file.stat().st_size / 10 < 200 / 2
    monkeypatch.setattr(shards, most, value)
    report = make(file, num_proc)
    files = shards.shard_files(folder)
    assert [file.name for file in files] == [f"{number:06}.arrow" for number in range(len(sizes))]
    assert [len(rows_of(file)) for file in files] == sizes
    assert list(itertools.chain.from_iterable(map(rows_of, files))) == list(range(10))
    assert [load(file.with_suffix(".json")).rows for file in files] == sizes
    assert report.rows == report.kept == 10


def test_a_shard_without_a_row_that_fits_is_empty(make, write, row, folder, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 1)
    make(write("rows.jsonl", [row(instruction="x" * 64), row()]))
    assert [len(rows_of(file)) for file in shards.shard_files(folder)] == [0, 1]


def test_what_is_not_whole_does_not_have_its_name(folder, monkeypatch):
    def fail(_):
        raise OSError("No space left on device")

    file = folder / "000000.arrow"
    shards.write_whole(file, b"old")
    monkeypatch.setattr(shards.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        shards.write_whole(file, b"new")
    assert file.read_bytes() == b"old"
    (folder / "cache-0123456789abcdef.arrow").write_bytes(b"left by a shuffle of datasets")
    assert shards.shard_files(folder) == [file], "hidden files and those of others are none"


def test_a_long_content_is_written_whole(folder):
    content = bytes(range(256)) * 1000
    shards.write_whole(folder / "file", content)
    assert (folder / "file").read_bytes() == content
