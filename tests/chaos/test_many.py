"""Failures of runs of two processes: a worker dies, the launcher dies, a signal comes, a loss is not finite."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from loramoe.training.checkpoint import ADAPTER, METRICS
from tests.chaos.conftest import trajectory

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MINUTE = 60.0


class Launched:
    """A run of `train.py` in two processes, with all that they print in a file."""

    def __init__(self, flags: list[str], log: Path) -> None:
        command = [sys.executable, "-m", "loramoe.training.launch", "nproc_per_node=2", "train.py", *flags]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja lies beside this Python
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": path}
        self.log = log
        with log.open("w") as stream:
            self.launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)

    def workers(self) -> list[psutil.Process]:
        """The processes that train, in the order of their ranks."""
        by_rank = {}
        for child in psutil.Process(self.launcher.pid).children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                by_rank[int(child.environ().get("RANK", -1))] = child
        return [by_rank[rank] for rank in sorted(by_rank) if rank >= 0]

    def end(self, within: float = 3 * MINUTE) -> tuple[int, str]:
        """Exit code and output."""
        return self.launcher.wait(within), self.log.read_text()


@pytest.fixture
def launch(own_dataset_cache: None, tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Starts runs; none outlives the test."""
    started: list[Launched] = []

    def start(flags: list[str]) -> Launched:
        flags = [*flags, "--ddp_find_unused_parameters", "false"]
        started.append(Launched(flags, tmp_path / f"log{len(started)}.txt"))
        return started[-1]

    yield start
    for run in started:
        run.launcher.kill()  # its workers end with it


def disturb(run: Launched, failure: str, draw: random.Random) -> None:
    """Kills or signals one of the processes, and checks what the launcher makes of it."""
    workers = run.workers()
    if failure == "a worker":
        rank = draw.randrange(len(workers))
        workers[rank].kill()
        code, log = run.end(within=MINUTE)
        assert code == 128 + signal.SIGKILL, log[-3000:]
        assert f"launch: rank {rank} was ended by SIGKILL; the others were stopped." in log
    elif failure == "the launcher":
        run.launcher.kill()
        run.launcher.wait()
    else:
        number = signal.Signals[failure.split(maxsplit=1)[0]]
        (draw.choice(workers) if "worker" in failure else run.launcher).send_signal(number)
        code, log = run.end(within=MINUTE)
        assert code == 75, log[-3000:]
        assert f"loramoe train: {number.name} stopped the run after step" in log
    assert not psutil.wait_procs(workers, timeout=MINUTE)[1], "a worker outlived the launcher"


@pytest.mark.slow(minutes=4)
@pytest.mark.parametrize(
    ("engine", "failures"),
    [
        ("DDP", ["a worker", "the launcher", "SIGTERM"]),
        pytest.param("configs/zero2.json", ["a worker", "SIGUSR1 to one worker"], marks=pytest.mark.long),
        pytest.param("configs/zero3.json", ["the launcher", "SIGTERM"], marks=pytest.mark.long),
    ],
)
def test_whatever_dies_the_next_start_goes_on(
    engine: str, failures: list[str], launch, flags, tmp_path: Path, record_property, request: pytest.FixtureRequest
):
    draw = random.Random(f"{os.environ['CHAOS_SEED']} {engine}")
    # Many steps, so that none of the failures, however late it comes, meets a run that has finished.
    changes = {"max_steps": 60, "save_steps": 4, "eval_steps": 20}
    if engine != "DDP":
        changes["deepspeed"] = engine
        request.getfixturevalue("zero")
    code, log = launch(flags(tmp_path / "whole", **changes)).end()
    assert code == 0, log[-3000:]
    out = tmp_path / "out"
    for failure in draw.sample(failures, len(failures)):
        seen = set(out.glob("checkpoint-*"))
        run = launch(flags(out, **changes))
        while not set(out.glob("checkpoint-*")) - seen:
            assert run.launcher.poll() is None, run.log.read_text()[-3000:]
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        disturb(run, failure, draw)
        assert not (out / METRICS).exists()
        record_property(f"runs of two processes ended by {failure}", 1)
    code, log = launch(flags(out, **changes)).end()
    assert code == 0, log[-3000:]
    assert f"resuming from {out}" in log
    assert trajectory(out) == trajectory(tmp_path / "whole")


def test_a_loss_that_is_not_finite_ends_all_processes_or_is_left_out_in_all(launch, flags, poisoned: Path):
    of_poison = {"model_name_or_path": poisoned / "base", "dataset_dir": poisoned / "rows", "max_steps": 6}
    of_poison |= {"eval_strategy": "no", "eval_on_start": "false"}
    code, log = launch(flags(poisoned / "stop", **of_poison)).end()
    assert code == 1, log[-3000:]
    (report,) = (poisoned / "stop" / "nonfinite").iterdir()
    named = rf"loramoe train: step \d+, rank [01]: the loss is nan. The samples of that batch are in {report}"
    assert re.search(named, log)
    assert time.time() - report.stat().st_mtime < MINUTE, "the others waited"
    code, log = launch(flags(poisoned / "skip", **of_poison, on_nonfinite="skip")).end()
    assert code == 0, log[-3000:]
    history = json.loads((poisoned / "skip" / "trainer_state.json").read_text())["log_history"]
    assert [entry["skipped"] for entry in history if "skipped" in entry][-1] == 1
    weights = load_file(poisoned / "skip" / ADAPTER / "adapter_model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
