"""Trackers show what a run logs of its experts. DeepSpeed is tested in tests/distributed/."""

from __future__ import annotations

import sqlite3
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.training.conftest import history

pytestmark = pytest.mark.slow
SHOWN = ("blc", "cov", "share/type1/group0", "routing/cov/up_proj", "routing/share/type1/group0/down_proj")


def test_trackers_show_the_constraint(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trackers = ["tensorboard", *(name for name in ("wandb", "trackio") if find_spec(name))]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_ID", "run")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    train(tmp_path / "out", max_steps=2, logging_steps=1, report_to=",".join(trackers), project="experts")
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    for name in SHOWN:
        logged = [entry[name] for entry in history(tmp_path / "out") if name in entry]
        assert [event.value for event in events.Scalars(f"train/{name}")] == pytest.approx(logged)
        assert events.Scalars(f"eval/{name}")
    if "wandb" in trackers:
        import wandb

        wandb.finish()
        wandb.teardown()  # it keeps the settings of its first run in a process
        (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
        written = record.read_bytes()
        assert all(f"{of}/{name}".encode() in written for name in SHOWN for of in ("train", "eval"))
    if "trackio" in trackers:
        with sqlite3.connect(tmp_path / "trackio" / "experts.db") as database:
            rows = "".join(metrics for (metrics,) in database.execute("SELECT metrics FROM metrics"))
        assert all(f"{of}/{name}" in rows for name in SHOWN for of in ("train", "eval"))
