"""Measuring many rows: the files that are made, the process that is watched, the table that comes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import data, harness, tables
from loramoe.data import read_samples

CELL = {"file_bytes": 123_400_000, "seconds": 4.0, "before_MiB": {"resident": 300.0, "anonymous": 200.0}}
CELL |= {"peak_MiB": {"resident": 500.4, "anonymous": 399.6}}


@pytest.mark.parametrize("suffix", data.FORMATS)
def test_rows_are_good_and_all_different(tmp_path: Path, suffix: str) -> None:
    rows = list(read_samples(data.write_rows(tmp_path / f"rows.{suffix}", 101), task_types=[0, 1]))
    assert len(rows) == len({json.dumps(row.messages) for row in rows}) == 101


@pytest.mark.parametrize("job", data.JOBS)
def test_a_job_tells_of_its_memory(tmp_path: Path, job: str) -> None:
    found = data.work(job, data.write_rows(tmp_path / "rows.json", 10))
    assert found["rows"] == 10
    assert found["seconds"] > 0
    assert 0 < found["before_MiB"]["anonymous"] < found["before_MiB"]["resident"]
    assert found["before_MiB"]["anonymous"] < found["peak_MiB"]["resident"]


def test_the_watch_sees_what_was_taken_and_given_back() -> None:
    before = data.status("RssAnon")
    with data.Watch() as watch:
        taken = bytearray(b"x" * 2**26)
        while watch.peak < before + 60:
            pass
        del taken
    assert before + 60 < watch.peak < before + 200


def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="stream of 3 rows failed:"):
        data.measure(3, "json", "stream")


@pytest.mark.slow
def test_a_process_that_loses_rows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows = data.write_rows
    monkeypatch.setattr(data, "write_rows", lambda file, rows: write_rows(file, rows - 1))
    with pytest.raises(RuntimeError, match="stream lost rows of 3"):
        data.measure(3, "json", "stream")


@pytest.mark.slow
def test_a_quick_run_measures_everything(monkeypatch: pytest.MonkeyPatch, threads: None, tmp_path: Path) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    data.main(quick=True)
    cells = json.loads((tmp_path / "quick" / "data.cpu.json").read_text())["cells"]
    assert len(cells) == len(data.QUICK) * len(data.FORMATS) * len(data.JOBS)


def test_the_table_by_known_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [CELL | {"rows": 1_000_000, "format": "json", "job": job} for job in ("tokenise", "stream")]
    result = {"cells": cells, "hardware": {"cpu": "c", "cores": 2, "threads": 2}, "device": "cpu", "versions": {}}
    result |= {"dirty": False, "date": "2000-01-01", "commit": "0123456789"}
    monkeypatch.setattr(tables, "load", lambda name, device: result)
    lines = tables.data().splitlines()
    assert lines[-2:] == [
        "| 1,000,000 | 123 (json) | checked for streaming | 250,000 | 300 | 500 | 400 |",
        "| 1,000,000 | 123 (json) | tokenised | 250,000 | 300 | 500 | 400 |",
    ]
