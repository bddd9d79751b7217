"""Tokenising that is killed, doubled or damaged: it goes on, waits or is refused, and never gives other data."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramoe.data import DatasetError, shards, tokenise
from tests.data.cached import contents, finished, mtime, unfinished


def test_the_second_of_two_builders_waits_and_takes_what_the_first_made(run, write, row, tmp_path, monkeypatch):
    file = write("rows.json", [row()])
    context, build, words = multiprocessing.get_context("fork"), tokenise._build, []
    started, waited_for = context.Event(), context.Event()

    def slowly(*args):
        started.set()
        waited_for.wait()
        build(*args)

    def first():
        monkeypatch.setattr(tokenise, "_build", slowly)
        run(file)

    def warning(message, *args):
        words.append(message % args)
        waited_for.set()

    child = context.Process(target=first)
    child.start()
    started.wait()
    monkeypatch.setattr(tokenise.logger, "warning", warning)
    monkeypatch.setattr(tokenise, "_build", lambda *_: pytest.fail("built again"))
    assert len(run(file)[0]) == 1
    child.join()
    (entry,) = finished(tmp_path)
    assert words == [f"another process tokenises the same data ({entry}.building); waiting for it"]
    assert unfinished(tmp_path) == []


def test_a_failure_leaves_nothing_that_looks_finished(run, write, row, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("No space left on device")

    file = write("rows.json", [row()])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="No space left on device"):
            run(file)
    assert finished(tmp_path) == []
    assert len(run(file)[0]) == 1
    assert unfinished(tmp_path) == []


@pytest.mark.parametrize("num_proc", [1, 2])
@pytest.mark.parametrize("killed_at", [0, 2, 3, 10, 19, 20])
def test_a_killed_run_is_continued_and_ends_as_if_it_had_not_been(
    run, write, row, tmp_path, monkeypatch, num_proc, killed_at
):
    """Four calls of fsync a shard: of file and folder, of its report and, once that has its name, the folder."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 5)
    file = write("rows.jsonl", [row(task_type=number) for number in range(24)])

    def killed():
        calls = itertools.count()
        monkeypatch.setattr(shards.os, "fsync", lambda _: next(calls) == killed_at and os.kill(os.getpid(), 9))
        run(file)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join()
    assert child.exitcode == -9
    assert finished(tmp_path) == []
    (building,) = unfinished(tmp_path)
    stamps = {report.stem: mtime(report.with_suffix(".arrow")) for report in building.glob("[!.]*.json")}
    assert len(stamps) == (killed_at + 1) // 4

    dataset, report = run(file, num_proc=num_proc)
    (entry,) = finished(tmp_path)
    assert unfinished(tmp_path) == []
    assert {name: mtime(entry / f"{name}.arrow") for name in stamps} == stamps, "no finished shard is made again"
    assert dataset["task_types"][:] == list(range(24))
    assert report == run(file, cache_dir=tmp_path / "whole")[1]
    assert contents(entry) == contents(tmp_path / "whole" / entry.name)


def test_a_killed_worker_is_told_and_the_next_call_goes_on(run, write, row, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 5)
    file = write("rows.jsonl", [row(task_type=number) for number in range(24)])
    calls = itertools.count()  # each worker has its own
    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "fsync", lambda _: next(calls) == 2 and os.kill(os.getpid(), 9))
        with pytest.raises(RuntimeError, match=r"ended before its work was done \(exit code -9;"):
            run(file, num_proc=2)
    dataset, report = run(file, num_proc=2)
    (entry,) = finished(tmp_path)
    assert dataset["task_types"][:] == list(range(24))
    assert report == run(file, cache_dir=tmp_path / "whole")[1]
    assert contents(entry) == contents(tmp_path / "whole" / entry.name)


@given(rows_read=st.integers(0, 23))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_lock_of_a_killed_run_with_workers_is_free(run, write, row, tmp_path, monkeypatch, rows_read):
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    monkeypatch.setattr(shards, "SHARD_ROWS", 5)
    file = write("rows.jsonl", [row(task_type=number) for number in range(24)])
    locate = shards.locate_rows

    def killing(*args):
        for number, located in enumerate(locate(*args)):
            if number == rows_read:
                os.kill(os.getpid(), 9)
            yield located

    def killed():
        monkeypatch.setattr(shards, "locate_rows", killing)
        run(file, num_proc=2)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join()
    assert child.exitcode == -9
    dataset, _ = run(file)
    assert dataset["task_types"][:] == list(range(24))
    assert unfinished(tmp_path) == []


def test_a_worker_that_outlives_its_run_disturbs_nobody(run, write, row, tmp_path, monkeypatch):
    """It writes the shard that the next run is writing too, is the first to finish, and is killed in its next."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 5)
    file = write("rows.jsonl", [row(task_type=number) for number in range(24)])
    fsync, outlived = os.fsync, []

    def meanwhile(descriptor):
        fsync(descriptor)
        if outlived:
            return
        outlived.extend(unfinished(tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr(shards.os, "getpid", lambda: 1)
            shards.write_whole(outlived[0] / "000000.arrow", b"of the worker")
        (outlived[0] / ".000001.arrow.1").write_bytes(b"half of")

    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "fsync", meanwhile)
        dataset, _ = run(file)
    run(file, cache_dir=tmp_path / "whole")
    (entry,) = finished(tmp_path)
    assert outlived
    assert dataset["task_types"][:] == list(range(24))
    assert contents(entry) == contents(tmp_path / "whole" / entry.name)


@pytest.mark.parametrize("kind", ["gone", "shorter", "report"])
def test_finished_data_that_was_damaged_is_refused(run, write, row, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(shards, "SHARD_ROWS", 5)
    file = write("rows.jsonl", [row(task_type=number) for number in range(24)])
    run(file)
    (entry,) = finished(tmp_path)
    shard = sorted(entry.glob("*.arrow"))[1]
    if kind == "gone":
        shard.unlink()
    elif kind == "shorter":
        os.truncate(shard, 100)
    else:
        (entry / "loramoe_report.json").write_text("{")
    with pytest.raises(DatasetError, match=r"this tokenised data is damaged.*Remove the folder"):
        run(file)
