"""The harness with known answers: a clock set by hand, and graphs whose memory can be counted on paper."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import harness
from benchmarks.harness import paired, peak_bytes, saved_bytes, write_result

FLOAT = 4


def test_each_round_runs_all_sides_in_rotating_order_and_drops_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now, ran = [0.0], []

    def side(name: str, *seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def run() -> None:
            assert not gc.isenabled()
            ran.append(name)
            now[0] += left.pop(0)

        return run

    monkeypatch.setattr(harness, "perf_counter", lambda: now[0])
    seconds = paired({"a": side("a", 100, 1, 2), "b": side("b", 50, 4, 5)}, pairs=2, warmup=1)
    assert seconds == {"a": [1, 2], "b": [4, 5]}
    assert "".join(ran) == "abbaab"
    assert gc.isenabled()


def test_a_linear_layer_saves_its_input_and_not_its_weight() -> None:
    linear, x = nn.Linear(10, 20), torch.randn(5, 10, requires_grad=True)
    assert saved_bytes(lambda: linear(x), linear.parameters()) == 5 * 10 * FLOAT


def test_a_storage_counts_once_and_whole() -> None:
    x = torch.randn(6, 4, requires_grad=True)
    assert saved_bytes(lambda: x[:2] * x[:2]) == 6 * 4 * FLOAT


def test_peak_is_the_most_alive_at_one_moment() -> None:
    def step() -> None:
        first = torch.ones(1000)
        second = first + first
        del first
        second + second

    assert peak_bytes(step, torch.device("cpu")) == 2 * 1000 * FLOAT


def test_a_quick_result_does_not_replace_a_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    write_result("layer", "cpu", {"quick": True})
    assert harness.load("layer", "cpu") is None
    record = json.loads(write_result("layer", "cpu", {"answer": 42}).read_text())
    assert record["answer"] == 42
    assert record["versions"]["torch"] == torch.__version__
    assert record["hardware"]["threads"] == torch.get_num_threads()
