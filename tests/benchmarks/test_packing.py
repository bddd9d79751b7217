"""The packing benchmark end to end on tiny sizes, and what it derives, by known answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import harness, packing
from loramoe.training.model import BY_SAMPLE

CPU = torch.device("cpu")


@pytest.mark.slow
def test_every_side_is_measured(tmp_path: Path, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    packing.main("cpu", quick=True)
    result = json.loads((tmp_path / "quick/packing.cpu.json").read_text())
    settings = result["settings"]
    assert [(one["lengths"], one["rows"], one["steps"]) for one in settings] == list(packing.SETTINGS)
    for setting in settings:
        sides = set(packing.SIDES) - ({"grouped"} if setting["steps"] == 1 else set())
        assert set(setting["seconds"]) == set(setting["speed_over_padded"]) == sides
        assert {len(taken) for taken in setting["seconds"].values()} == {result["pairs"]}
        padding = setting["padding"]
        assert 0 == padding["packed"] < padding.get("grouped", 0.01) < padding["padded"]
        assert setting["bound"] == pytest.approx(1 / (1 - padding["padded"]))
        assert setting["relative_error"] <= 1e-5
        assert setting["attention"] == {**dict.fromkeys(sides, "sdpa"), "packed": BY_SAMPLE}


def test_comparison_by_known_answer() -> None:
    compared = packing.compare({"padded": [2.0, 2.0, 8.0], "packed": [1.0, 1.0, 4.0]}, tokens=100)
    assert compared["tokens_per_second"] == {"padded": 50, "packed": 100}
    assert compared["speed_over_padded"]["packed"] == {"p20": 2, "p50": 2, "p80": 2}


def test_all_sides_train_on_the_same_rows() -> None:
    rows = packing.rows_of(packing.log_normal_lengths(32), vocabulary=64)
    tokens = {
        side: sorted(token for batch in packing.batches(side, rows, 16, CPU) for token in labels_of(batch))
        for side in ("padded", "grouped")
    }
    assert tokens["padded"] == tokens["grouped"] == sorted(token for row in rows for token in row["labels"])
    packed = packing.batches("packed", rows, 16, CPU)
    assert sum(len(batch["task_types"]) for batch in packed) == 32
    assert max(batch["input_ids"].shape[1] for batch in packed) <= packing.ROOM


def labels_of(batch: packing.Batch) -> list[int]:
    return batch["labels"][batch["labels"] != -100].tolist()


def test_batches_that_differ_are_not_timed() -> None:
    sides = packing.models(packing.QUICK, CPU, torch.float32, "sdpa")
    rows = packing.rows_of([5] * 16, vocabulary=64)
    assert packing.check(sides, rows, CPU, tolerance=1e-5) <= 1e-5
    for parameter in packing.trained(sides["packed"]):
        parameter.data.mul_(2)
    with pytest.raises(AssertionError, match=r"a packed batch has the loss .*: not timed\. Repair"):
        packing.check(sides, rows, CPU, tolerance=1e-5)
