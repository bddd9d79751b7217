"""One run at a time in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loramoe.training.lock import RunLock


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path):
    with RunLock(tmp_path / "run") as first, RunLock(tmp_path / "run", seconds=0) as second:
        assert not first.held
        first.take()
        assert first.held
        with pytest.raises(
            FileExistsError,
            match=r"run is in use by another run\. Wait for its end or .* crashed, remove .*/\.lock\.",
        ):
            second.take()
        assert not second.held
    with RunLock(tmp_path / "run", seconds=0) as third:
        third.take()
        assert third.held


def test_a_process_that_dies_lets_go(tmp_path: Path):
    dying = "import os, sys; from loramoe.training.lock import RunLock; from pathlib import Path; "
    dying += "lock = RunLock(Path(sys.argv[1])); lock.take(); os.kill(os.getpid(), 9)"
    ended = subprocess.run([sys.executable, "-c", dying, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -9
    with RunLock(tmp_path, seconds=0) as lock:
        lock.take()
