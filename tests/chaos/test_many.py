"""Failures of runs of two processes: a worker dies, the launcher dies, a signal comes, two runs meet in one folder."""

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
    """A run of `train.py` in two processes.

    Args:
        flags: Of `train.py`.
        log: File for what all processes print.
    """

    def __init__(self, flags: list[str], log: Path) -> None:
        command = [sys.executable, "-m", "loramoe.training.launch", "nproc_per_node=2"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja lies beside this Python
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": path}
        self.log = log
        with log.open("w") as stream:
            self.launcher = subprocess.Popen(
                [*command, "train.py", *flags], cwd=ROOT, env=environment, stdout=stream, stderr=stream
            )

    def workers(self) -> list[psutil.Process]:
        """The processes that train, in the order of their ranks."""
        by_rank = {}
        for child in psutil.Process(self.launcher.pid).children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                by_rank[int(child.environ().get("RANK", -1))] = child
        return [by_rank[rank] for rank in sorted(by_rank) if rank >= 0]

    def wait_for(self, output_dir: Path, pattern: str, but: set[Path]) -> None:
        """Waits for a file that was not there before."""
        while not set(output_dir.glob(pattern)) - but:
            assert self.launcher.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.01)

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
    engine: str,
    failures: list[str],
    launch: Callable[[list[str]], Launched],
    flags: Callable[..., list[str]],
    tmp_path: Path,
    record_property: Callable[[str, int], None],
    request: pytest.FixtureRequest,
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
        run.wait_for(out, "checkpoint-*", but=seen)
        time.sleep(draw.uniform(0, 0.2))
        workers, began = run.workers(), time.monotonic()
        if failure == "a worker":
            victim = draw.choice(workers)
            rank = workers.index(victim)
            victim.kill()
            code, log = run.end(within=MINUTE)
            assert code == 128 + signal.SIGKILL, log[-3000:]
            assert f"launch: rank {rank} was ended by SIGKILL; the others were stopped." in log
        elif failure == "the launcher":
            run.launcher.kill()
            run.launcher.wait()
        else:
            number = signal.Signals[failure.split()[0]]
            receiver = draw.choice(workers) if "worker" in failure else run.launcher
            receiver.send_signal(number)
            code, log = run.end(within=MINUTE)
            assert code == 75, log[-3000:]
            assert f"loramoe train: {number.name} stopped the run after step" in log
        _, alive = psutil.wait_procs(workers, timeout=MINUTE - (time.monotonic() - began))
        assert not alive
        assert not (out / METRICS).exists()
        record_property(f"runs of two processes ended by {failure}", 1)
    code, log = launch(flags(out, **changes)).end()
    assert code == 0, log[-3000:]
    assert f"resuming from {out}" in log
    assert trajectory(out) == trajectory(tmp_path / "whole")


def test_a_loss_that_is_not_finite_ends_all_processes_or_is_left_out_in_all(
    launch: Callable[[list[str]], Launched], flags: Callable[..., list[str]], poisoned: Path
):
    of_poison = {"model_name_or_path": poisoned / "base", "dataset_dir": poisoned / "rows", "max_steps": 6}
    of_poison |= {"eval_strategy": "no", "eval_on_start": "false"}
    began = time.monotonic()
    run = launch(flags(poisoned / "stop", **of_poison))
    code, log = run.end()
    assert code == 1, log[-3000:]
    (report,) = (poisoned / "stop" / "nonfinite").iterdir()
    assert re.search(
        rf"loramoe train: step \d+, rank [01]: the loss is nan. The samples of that batch are in {report}", log
    )
    assert time.time() - report.stat().st_mtime < MINUTE, "the others waited"
    assert time.monotonic() - began < 3 * MINUTE
    code, log = launch(flags(poisoned / "skip", **of_poison, on_nonfinite="skip")).end()
    assert code == 0, log[-3000:]
    history = json.loads((poisoned / "skip" / "trainer_state.json").read_text())["log_history"]
    assert [entry["skipped"] for entry in history if "skipped" in entry][-1] == 1
    weights = load_file(poisoned / "skip" / ADAPTER / "adapter_model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
