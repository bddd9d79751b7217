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


@pytest.mark.parametrize(
    ("codes", "code", "words"),
    [
        ({1: 75, 0: -15}, 75, "have saved"),
        ({0: 1, 2: -15, 1: -9}, 137, "rank 1 was ended by SIGKILL.*memory"),  # the others are consequences
        ({1: -11}, 139, "rank 1 was ended by SIGSEGV; the others were stopped.$"),
        ({3: 2, 0: 1}, 2, "rank 3 failed with code 2"),
    ],
)
def test_ends_of_workers_become_one_code_and_one_line(codes: dict[int, int], code: int, words: str):
    ends = {rank: SimpleNamespace(exitcode=code, timestamp=when) for when, (rank, code) in enumerate(codes.items())}
    got, message = judge(ends)
    assert got == code
    assert re.search(words, message)


def test_a_signal_to_torchrun_is_in_the_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(arguments: object) -> None:
        raise SignalException("stopped", signal.SIGINT)

    monkeypatch.setattr(module, "run", interrupted)
    monkeypatch.setattr(module.signal, "signal", lambda number, handler: None)
    assert run_workers(["train.py"]) == 128 + signal.SIGINT
    assert "SIGINT" in capsys.readouterr().err


def launched(worker: str, folder: Path) -> subprocess.Popen[str]:
    (folder / "worker.py").write_text(textwrap.dedent(worker))
    command = [sys.executable, "-m", "loramoe.training.launch", "nproc_per_node=2", "worker.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **streams)


def wait_for_two(folder: Path, pattern: str) -> list[Path]:
    end = time.monotonic() + 240
    while len(files := list(folder.glob(pattern))) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    return files


WAITS_FOR_A_SIGNAL = """
    import os, signal, time
    def leave(number, frame):
        time.sleep(0.5 * int(os.environ["RANK"]))
        os._exit(75)
    signal.signal(signal.SIGUSR1, leave)
    open(f"ready{os.environ['RANK']}", "w").close()
    time.sleep(60)
"""


@pytest.mark.slow
def test_signals_reach_the_workers_and_75_comes_back(tmp_path: Path):
    launcher = launched(WAITS_FOR_A_SIGNAL, tmp_path)
    wait_for_two(tmp_path, "ready*")
    launcher.send_signal(signal.SIGUSR1)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 75, errors[-2000:]
    assert "the workers were asked to stop, and have saved" in errors
    assert "Traceback" not in errors


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
    pids = [int(file.name[3:]) for file in wait_for_two(tmp_path, "pid*")]
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert not alive
