"""Runs of `train.py` on the tiny model, in one or several processes, each made once for all tests that look at it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
ADAPTER = "sft_lora_model"
STEPS = 30


@dataclass(frozen=True)
class Finished:
    """What a run left."""

    folder: Path

    @property
    def losses(self) -> list[float]:
        """Of each step, the constraint included."""
        history = json.loads((self.folder / "trainer_state.json").read_text())["log_history"]
        return [entry["loss"] for entry in history if "loss" in entry]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        return json.loads((self.folder / "metrics.json").read_text())

    def adapter(self, of: str = ".") -> dict[str, Tensor]:
        """The trained one, or that of a checkpoint."""
        return load_file(self.folder / of / ADAPTER / "adapter_model.safetensors")

    def apart(self, other: Finished) -> tuple[float, float]:
        """Largest relative deviation from another run's losses, and from its weights (norm, tensor by tensor)."""
        ours, theirs = self.adapter(), other.adapter()
        assert ours.keys() == theirs.keys()
        losses = max(abs(a - b) / abs(b) for a, b in zip(self.losses, other.losses, strict=True))
        weights = max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)
        return losses, weights


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: list[str], folder: Path, variables: dict[str, object]) -> subprocess.Popen[str]:
    """Starts a command on the CPU with environment variables of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja lies beside this Python
    environment = {**os.environ, "PATH": path, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", **{name: str(value) for name, value in variables.items()}}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **streams)


def torchrun(worker: str, *arguments: object, folder: Path, **variables: object) -> None:
    """Runs a script of this folder in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name(worker)), *map(str, arguments)]
    check(start(command, folder, {"PYTHONPATH": ROOT, **variables}))


def check(command: subprocess.Popen[str], timeout: float = 240) -> str:
    """Waits for a command to end well; what it printed is in the failure if it does not."""
    try:
        printed, _ = command.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        command.terminate()  # torchrun then ends its workers
        printed, _ = command.communicate(timeout=60)
        pytest.fail(f"not done after {timeout} s:\n{printed[-4000:]}")
    assert command.returncode == 0, printed[-6000:]
    return printed


def skip_without_launcher() -> None:
    """Skips where `run_loramoe.sh` would not start."""
    checked = [sys.executable, str(ROOT / "scripts/check_env.py"), "train"]
    done = subprocess.run(checked, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"run_loramoe.sh refuses this Python: {(done.stdout + done.stderr).strip()}")


class Runs:
    """Makes runs through `run_loramoe.sh`, or in this process if they have only one."""

    def __init__(self, task: Any, folder: Path) -> None:
        self.task = task
        self.folder = folder

    def flags(self, out: Path, changes: dict[str, object]) -> list[str]:
        """Those of every run here, changed: no dropout, as processes draw differently, and no evaluation."""
        values: dict[str, object] = {"lora_dropout": 0, "blc_weight": 0.5, "max_steps": STEPS, "logging_steps": 1}
        values |= {"learning_rate": 2e-3, "save_strategy": "no", "do_eval": "false", "report_to": "none"}
        return self.task.flags(out, **{**values, "eval_strategy": "no", "eval_on_start": "false", **changes})

    def alone(self, name: str, **changes: object) -> Finished:
        """A run in this process."""
        from loramoe.training import parse, run_sft

        out = self.folder / name
        if not out.exists():
            run_sft(parse(self.flags(out, changes)))
        return Finished(out)

    def launch(self, out: Path, variables: dict[str, object], **changes: object) -> subprocess.Popen[str]:
        """Starts `run_loramoe.sh` with environment variables of its own, and flags."""
        skip_without_launcher()
        command = ["bash", str(ROOT / "run_loramoe.sh"), *self.flags(out, changes)]
        return start(command, ROOT, {"pretrained_model": self.task.base, **variables})  # its tokenizer is then its own

    def together(self, name: str, engine: str = "ddp", **changes: object) -> Finished:
        """A run in two processes of this machine."""
        out = self.folder / name
        if not (out / "metrics.json").exists():
            printed = check(self.launch(out, {"nproc_per_node": 2, "engine": engine}, **changes))
            (out / "printed.txt").write_text(printed)
        return Finished(out)


@pytest.fixture(scope="session")
def runs(tiny_task: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tiny_task.cache)
        patch.setenv("HF_DATASETS_CACHE", str(tiny_task.cache))
        yield Runs(tiny_task, tmp_path_factory.mktemp("runs"))
