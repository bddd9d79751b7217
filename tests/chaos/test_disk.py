"""A disk that fills up while a checkpoint is written: what was saved stays, and the error says how to go on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loramoe.training.checkpoint import METRICS, latest_complete
from tests.chaos.conftest import trajectory
from tests.chaos.victim import Killer

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path, killer: Killer) -> Iterator[Path]:
    """A file system with room for one to three checkpoints of some 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={killer.draw.randrange(400, 1000)}k"
    mount = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mount or mount.returncode:
        pytest.skip("mounting a small file system needs rights that are not there")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_no_finished_work(
    killer: Killer,
    flags: Callable[..., list[str]],
    whole: dict,
    small_disk: Path,
    record_property: Callable[[str, int], None],
):
    out = small_disk / "out"
    code, log = killer.start(flags(out, save_total_limit=9), out)
    assert code == 1
    (told,) = [line for line in log.splitlines() if line.startswith("loramoe train: ")]
    assert "could not be written: " in told
    assert "MiB are free)" in told
    assert told.endswith("Make room, and start the same command again to go on.")
    newest = latest_complete(out)
    assert (f"The newest complete checkpoint is {newest}" if newest else "There is no complete checkpoint yet") in told
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    code, log = killer.start(flags(out, save_total_limit=9), out)
    assert code == 0, log[-3000:]
    assert (f"resuming from {newest}" in log) is bool(newest)
    assert trajectory(out) == whole
    record_property("full disks", 1)


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
        assert "could not be written: " in log.splitlines()[-1]
        assert not (out / METRICS).exists()
    code, log = killer.start(flags(out), out)
    assert code == 0, log[-3000:]
    assert trajectory(out) == whole
    record_property("writes refused by the system", 3)
