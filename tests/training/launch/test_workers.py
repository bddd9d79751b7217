"""torchrun around the workers: what their ends mean, and how signals reach them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException

from loramoe.training.launch import workers as module
from loramoe.training.launch.workers import judge, run_workers

ROOT = Path(__file__).parents[3]


def ended(**codes: int) -> dict[int, SimpleNamespace]:
    """Failures by rank, in the order in which they happened."""
    return {
        int(rank[1:]): SimpleNamespace(exitcode=code, timestamp=when) for when, (rank, code) in enumerate(codes.items())
    }


@pytest.mark.parametrize(
    ("codes", "code", "words"),
    [
        ({"r0": 75, "r1": 75}, 75, "have saved"),
        ({"r1": 75, "r0": -15}, 75, "have saved"),
        ({"r0": 1, "r2": -15, "r1": -9}, 137, "rank 1 was ended by SIGKILL.*memory"),  # the others are consequences
        ({"r1": -11}, 139, "rank 1 was ended by SIGSEGV; the others were stopped.$"),
        ({"r3": 2, "r0": 1}, 2, "rank 3 failed with code 2"),
    ],
)
def test_ends_of_workers_become_one_code_and_one_line(codes: dict[str, int], code: int, words: str):
    got, message = judge(ended(**codes))
    assert got == code
    assert re.search(words, message)


def test_a_signal_to_torchrun_is_in_the_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(arguments: object) -> None:
        raise SignalException("stopped", signal.SIGINT)

    monkeypatch.setattr(module, "run", interrupted)
    monkeypatch.setattr(module.signal, "signal", lambda number, handler: None)
    assert run_workers(["train.py"]) == 128 + signal.SIGINT
    assert "SIGINT" in capsys.readouterr().err


def launched(worker: str, folder: Path, processes: int = 2) -> subprocess.Popen[str]:
    (folder / "worker.py").write_text(textwrap.dedent(worker))
    command = [sys.executable, "-m", "loramoe.training.launch", f"nproc_per_node={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, "worker.py"], cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


WAITS_FOR_A_SIGNAL = """
    import os, signal, sys, time
    def leave(number, frame):
        time.sleep(0.5 * int(os.environ["RANK"]))
        open(f"saved{os.environ['RANK']}", "w").close()
        os._exit(75)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGUSR1, leave)
    open(f"ready{os.environ['RANK']}", "w").close()
    time.sleep(60)
"""


def wait_for(*files: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not all(file.exists() for file in files):
        assert time.monotonic() < end, f"none of {files} after {seconds} s"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_workers_and_75_comes_back(number: signal.Signals, tmp_path: Path):
    launcher = launched(WAITS_FOR_A_SIGNAL, tmp_path)
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    launcher.send_signal(number)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 75, errors[-2000:]
    assert "the workers were asked to stop, and have saved" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_success_is_zero_and_a_failure_is_named(tmp_path: Path):
    launcher = launched("pass", tmp_path)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, errors[-2000:]
    launcher = launched("import os, sys; sys.exit(3 if os.environ['RANK'] == '1' else 0)", tmp_path)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 3, errors[-2000:]
    assert "launch: rank 1 failed with code 3" in errors


@pytest.mark.slow
def test_workers_do_not_outlive_their_launcher(tmp_path: Path):
    worker = """
        import os, time
        from loramoe.training.distributed import exit_with_launcher
        exit_with_launcher()
        open(f"pid{os.getpid()}", "w").close()
        time.sleep(300)
    """
    launcher = launched(worker, tmp_path)
    end = time.monotonic() + 240
    while len(pids := [int(file.name[3:]) for file in tmp_path.glob("pid*")]) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert not alive
