"""The harness by known answers: a clock that is set by hand, graphs whose memory can be counted on paper."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import harness
from benchmarks.harness import added, added_ratio, paired, quantiles, ratios, run_alone, write_result


class Clock:
    """A clock that moves only when a side runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def side(self, name: str, *seconds: float) -> Callable[[], None]:
        """A side that takes so many seconds, call by call."""
        left = list(seconds)

        def run() -> None:
            self.ran.append(name)
            self.now += left.pop(0)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(harness, "perf_counter", lambda: clock.now)
    return clock


def test_all_sides_run_in_every_round_in_rotating_order(clock: Clock) -> None:
    paired({name: clock.side(name, *[1.0] * 4) for name in "abc"}, pairs=3, warmup=1)
    assert "".join(clock.ran) == "abc" + "bca" + "cab" + "abc"


def test_paired_gives_the_seconds_of_each_round_without_the_warm_up(clock: Clock) -> None:
    seconds = paired({"a": clock.side("a", 100, 1, 2, 3), "b": clock.side("b", 50, 4, 5, 6)}, pairs=3, warmup=1)
    assert seconds == {"a": [1, 2, 3], "b": [4, 5, 6]}


def test_garbage_is_collected_outside_of_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    collecting: list[bool] = []
    times = iter(range(10))
    monkeypatch.setattr(harness, "perf_counter", lambda: next(times))
    paired({"a": lambda: collecting.append(harness.gc.isenabled())}, pairs=2, warmup=0)
    assert collecting == [False, False]
    assert harness.gc.isenabled()
    assert harness.gc.get_freeze_count() == 0


def test_a_side_that_fails_leaves_garbage_collection_as_it_was() -> None:
    with pytest.raises(ZeroDivisionError):
        paired({"a": lambda: 1 / 0})
    assert harness.gc.isenabled()
    assert harness.gc.get_freeze_count() == 0


def test_quantiles() -> None:
    assert quantiles([5, 1, 2, 4, 3, 0]) == {"p20": 1, "p50": 2.5, "p80": 4}
    assert quantiles([7]) == {"p20": 7, "p50": 7, "p80": 7}


def test_ratios_and_differences_are_taken_within_rounds() -> None:
    assert ratios([2, 9], [4, 3]) == [0.5, 3]
    assert added([2, 9], [4, 3]) == [-2, 6]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1, 2], [1])


def test_added_ratio_does_not_mind_a_machine_that_slows_down() -> None:
    base = [1.0, 10.0, 1.0]
    side = [1.2, 10.2, 1.2]
    other = [1.8, 10.8, 1.8]
    assert added_ratio(side, other, base) == pytest.approx(0.25)


def test_added_ratio_to_a_side_that_adds_nothing_is_no_number() -> None:
    assert math.isnan(added_ratio([2, 2], [1, 1], [1, 1]))


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_a_result_says_what_one_must_know_to_believe_it(results: Path) -> None:
    file = write_result("layer", "cpu", {"answer": 42})
    record = json.loads(file.read_text())
    assert file == results / "layer.cpu.json"
    assert record["answer"] == 42
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["versions"]) == {"python", "torch", "transformers", "peft", "loramoe"}
    assert record["hardware"]["threads"] == torch.get_num_threads()
    assert record["hardware"]["cpu"]
    assert {"name", "device", "date", "commit", "dirty"} <= set(record)


def test_a_quick_run_does_not_take_the_place_of_a_measurement(results: Path) -> None:
    measured = write_result("layer", "cpu", {"quick": False})
    assert write_result("layer", "cpu", {"quick": True}) == results / "quick/layer.cpu.json"
    assert json.loads(measured.read_text())["quick"] is False


def test_start_takes_the_named_device_and_one_thread_per_core(threads: None) -> None:
    assert harness.start("cpu") == torch.device("cpu")
    assert torch.get_num_threads() == harness.physical_cores() >= 1
    assert harness.device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_module_run_alone_reads_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str | None, bool]] = []

    def main(device: str | None = None, quick: bool = False) -> None:
        calls.append((device, quick))

    monkeypatch.setattr("sys.argv", ["benchmarks.layer"])
    run_alone(main)
    monkeypatch.setattr("sys.argv", ["benchmarks.layer", "--device", "cpu", "--quick"])
    run_alone(main)
    assert calls == [(None, False), ("cpu", True)]
