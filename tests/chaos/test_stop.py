"""A scheduler that takes the machine away at random moments: SIGTERM or SIGUSR1, a code that says so, nothing lost."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from loramoe.training.checkpoint import METRICS
from tests.chaos.conftest import trajectory
from tests.chaos.victim import Killer

pytestmark = pytest.mark.slow


def test_a_run_that_is_stopped_again_and_again_loses_nothing(
    killer: Killer,
    flags: Callable[..., list[str]],
    whole: dict,
    tmp_path: Path,
    record_property: Callable[[str, int], None],
):
    codes = []
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
