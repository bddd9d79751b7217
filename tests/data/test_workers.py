"""Processes: results in order, errors and deaths told, nobody left behind when the parent is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from loramoe.data.workers import in_processes


def square(number: int) -> int:
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three is refused")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("num_proc", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 12])
def test_results_come_in_order(num_proc, count):
    assert list(in_processes(square, range(count), num_proc)) == [number**2 for number in range(count)]


def test_few_tasks_are_taken_at_once():
    taken = []
    for result in in_processes(square, (taken.append(number) or number for number in range(20)), 2):
        assert len(taken) <= result**0.5 + 3
    assert len(taken) == 20


@pytest.mark.parametrize("num_proc", [1, 2])
def test_an_error_in_a_process_is_raised(num_proc):
    results = in_processes(fail_at_three, range(100), num_proc)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three is refused"):
        next(results)
    assert multiprocessing.active_children() == []


def test_an_error_of_the_tasks_is_raised():
    def tasks():
        yield 1
        raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        list(in_processes(square, tasks(), 2))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_proc", [1, 2])
def test_the_death_of_a_process_is_told(num_proc):
    message = r"ended before its work was done \(exit code -9; .* with fewer processes if memory is short: what is fini"
    with pytest.raises(RuntimeError, match=message):
        list(in_processes(die_at_three, range(100), num_proc))
    assert multiprocessing.active_children() == []


def running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_nobody_outlives_a_killed_parent(tmp_path):
    def parent():
        tasks = (time.sleep(number > 8) or number for number in range(1000))
        for _ in in_processes(lambda number: (tmp_path / str(os.getpid())).touch(), tasks, 3):
            pass

    process = multiprocessing.get_context("fork").Process(target=parent)
    process.start()
    while len(list(tmp_path.iterdir())) < 3:
        time.sleep(0.01)
    process.kill()
    process.join()
    pids = [int(file.name) for file in tmp_path.iterdir()]
    deadline = time.monotonic() + 10
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(running, pids))
