"""One process that is killed, stopped or refused a write at any moment ends as the run that nothing disturbed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from loramoe.training.checkpoint import METRICS, checkpoints, damage, latest_complete
from tests.chaos.conftest import trajectory
from tests.chaos.victim import Killer

pytestmark = pytest.mark.slow

Flags = Callable[..., list[str]]
Count = Callable[[str, int], None]
PACKED = {"packing": True, "load_best_model_at_end": "true", "eval_steps": 2}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="stored"),
        pytest.param(PACKED, id="packed", marks=pytest.mark.long),
        pytest.param({"streaming": True, "dataloader_num_workers": 2}, id="streamed", marks=pytest.mark.long),
    ],
)
def test_a_run_that_is_killed_loses_nothing(
    changes: dict, killer: Killer, flags: Flags, whole: dict, tmp_path: Path, record_property: Count
):
    if changes:  # the same samples, in other batches
        code, log = killer.start(flags(tmp_path / "undisturbed", **changes), tmp_path / "undisturbed")
        assert code == 0, log[-3000:]
        whole = trajectory(tmp_path / "undisturbed")
    kills, runs = 0, 0
    while kills < 12:
        runs += 1
        out = tmp_path / f"out{runs}"
        while not (out / METRICS).is_file():
            how = killer.draw.choice(("at a file", "at a time", "while saving")) if kills < 12 else "not at all"
            code, log = killer.start(flags(out, **changes), out, how)
            assert code in (0, -9), log[-3000:]
            kills = sum(killer.kills.values())
        assert trajectory(out) == whole
    for how, count in killer.kills.items():
        record_property(f"runs killed {how}", count)
    record_property("runs that ended on the same trajectory", runs)


def spoil(folder: Path, killer: Killer) -> None:
    """Leaves a file cut short or gone, as a copy that was interrupted does."""
    file = killer.draw.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    if killer.draw.random() < 0.5:
        os.truncate(file, killer.draw.randrange(file.stat().st_size))
    else:
        file.unlink()


def test_a_damaged_checkpoint_is_named_and_never_resumed_from(
    killer: Killer, flags: Flags, whole: dict, tmp_path: Path, record_property: Count
):
    damaged, runs = 0, 0
    while damaged < 8:
        runs += 1
        out, spoilt = tmp_path / f"out{runs}", None
        while not (out / METRICS).is_file():
            code, log = killer.start(flags(out), out, "after saving" if damaged < 8 else "not at all")
            assert code in (0, -9), log[-3000:]
            if spoilt:
                assert f"{spoilt} is not complete, and left alone: " in log
                assert f"resuming from {spoilt}" not in log
            complete = [folder for folder in checkpoints(out) if damage(folder) is None] if code and damaged < 8 else []
            spoilt = complete[-1] if complete else None
            if spoilt:
                spoil(spoilt, killer)
                damaged += 1
        assert trajectory(out) == whole
    record_property("checkpoints damaged", damaged)


def test_a_file_that_may_not_grow_costs_no_finished_work(
    killer: Killer, flags: Flags, whole: dict, tmp_path: Path, record_property: Count
):
    """As a quota would have it: every write beyond a limit fails, in whichever library it is made."""
    out = tmp_path / "out"
    for _ in range(3):
        code, log = killer.start(flags(out), out, file_limit=killer.draw.randrange(20_000, 120_000))
        assert code == 1
        (error,) = [line for line in log.splitlines() if line.startswith("loramoe train: ")]
        newest = latest_complete(out)
        assert "could not be written: " in error
        assert (f"newest complete checkpoint is {newest}" if newest else "no complete checkpoint yet") in error
        assert not (out / METRICS).exists()
    code, log = killer.start(flags(out), out)
    assert code == 0, log[-3000:]
    assert trajectory(out) == whole
    record_property("writes refused by the system", 3)


def test_a_run_that_is_stopped_again_and_again_loses_nothing(
    killer: Killer, flags: Flags, whole: dict, tmp_path: Path, record_property: Count
):
    codes: list[int] = []
    for runs in range(1, 20):
        out = tmp_path / f"out{runs}"
        while not (out / METRICS).is_file():
            number = killer.draw.choice((signal.SIGTERM, signal.SIGUSR1)) if codes.count(75) < 4 else 0
            code, log = killer.start(flags(out), out, number.name if number else "not at all")
            codes.append(code)
            assert code in (0, 75, -number), log[-3000:]  # before the training the signal ends the process as always
            if code == 75:
                assert f"loramoe train: {number.name} stopped the run after step" in log
        assert trajectory(out) == whole
        if codes.count(75) >= 4:
            break
    assert codes.count(75) >= 4
    record_property("runs stopped by a signal that saved", codes.count(75))
