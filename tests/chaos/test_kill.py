"""A run that is killed again and again, at any moment, ends as the one that nothing disturbed: no step is lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from loramoe.training.checkpoint import METRICS, checkpoints, damage
from tests.chaos.conftest import trajectory
from tests.chaos.victim import Killer

pytestmark = pytest.mark.slow

HOW = ("at a file", "at a time", "while saving")


@pytest.mark.parametrize(
    "rows",
    [
        "stored",
        pytest.param("stored, packed", marks=pytest.mark.long),
        pytest.param("streamed", marks=pytest.mark.long),
    ],
)
def test_a_run_that_is_killed_at_any_moment_loses_nothing(
    rows: str,
    killer: Killer,
    flags: Callable[..., list[str]],
    whole: dict,
    tmp_path: Path,
    record_property: Callable[[str, int], None],
):
    changes: dict[str, object] = {"streaming": "streamed" in rows, "packing": "packed" in rows}
    if "streamed" in rows:
        changes |= {"dataloader_num_workers": 2}
    if "packed" in rows:
        changes |= {"load_best_model_at_end": "true", "eval_steps": 2}
    if rows != "stored":  # the same samples, in other batches
        code, log = killer.start(flags(tmp_path / "undisturbed", **changes), tmp_path / "undisturbed")
        assert code == 0, log[-3000:]
        whole = trajectory(tmp_path / "undisturbed")
    kills, runs = 0, 0
    while kills < 12:
        runs += 1
        out = tmp_path / f"out{runs}"
        while not (out / METRICS).is_file():
            how = killer.draw.choice(HOW) if kills < 12 else "not at all"
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
    killer: Killer,
    flags: Callable[..., list[str]],
    whole: dict,
    tmp_path: Path,
    record_property: Callable[[str, int], None],
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
