"""The bar: bytes, rows and time left; silent where it was switched off and while the work is short."""

from __future__ import annotations

import datasets
import pytest

from loramoe.data import progress
from loramoe.data.progress import RowProgress
from loramoe.data.read import locate_rows


@pytest.fixture
def file(write, row):
    return write("rows.jsonl", [row() for _ in range(2500)])


def read(files) -> None:
    with RowProgress(files, "Reading") as bar:
        for _ in locate_rows(files, None, bar):
            pass


def test_the_bar_tells_of_bytes_rows_and_time_left(file, write, row, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SHOWN_AFTER_SECONDS", 0)
    files = [file, write("more.json", [row()] * 10)]
    read(files)
    shown = capsys.readouterr().err
    size = sum(file.stat().st_size for file in files)
    assert f"{size / 1000:.0f}k/{size / 1000:.0f}k [" in shown
    assert "Reading: 100%" in shown
    assert "2,510 rows, " in shown
    assert " rows/s]" in shown


def test_short_work_shows_nothing(file, capsys):
    read([file])
    assert capsys.readouterr().err == ""


def test_the_switch_of_datasets_silences_it(file, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SHOWN_AFTER_SECONDS", 0)
    datasets.disable_progress_bars()
    try:
        read([file])
    finally:
        datasets.enable_progress_bars()
    assert capsys.readouterr().err == ""
