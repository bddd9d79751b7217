"""Writes that the system refuses, as a full disk does: what was saved stays, and the error says how to go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loramoe.training.checkpoint import METRICS, latest_complete
from tests.chaos.conftest import trajectory
from tests.chaos.victim import Killer

pytestmark = pytest.mark.slow


def test_a_file_that_may_not_grow_costs_no_finished_work(
    killer: Killer,
    flags: Callable[..., list[str]],
    whole: dict,
    tmp_path: Path,
    record_property: Callable[[str, int], None],
):
    """As a quota would have it: every write beyond a limit fails, in whichever library it is made."""
    out = tmp_path / "out"
    for _ in range(3):
        limit = killer.draw.randrange(20_000, 120_000)
        code, log = killer.start(flags(out), out, file_limit=limit)
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
