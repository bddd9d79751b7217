"""A run of `train.py` in a process of its own, which may be killed at a moment that is drawn by lot.

Processes come from a fork server that has imported everything once, so that a run of a few steps takes a second or two
and a hundred of them are affordable.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.chaos.preload"])

SIGNALS = ("SIGTERM", "SIGUSR1")
WRITING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


def train(flags: list[str], output_dir: str, log: str, kill_at: int, file_limit: int) -> None:
    """The body of the process, which does not survive operation `kill_at` (0: none) on the files of output_dir.

    A file that it would then have written is left empty if kill_at is even. No file may have more than `file_limit`
    bytes (0: any number).
    """
    # As where train.py is started. Workers of its loaders would else be children of the fork server, and never learn,
    # as they do when their parent changes, that their run was killed.
    multiprocessing.set_start_method("fork", force=True)
    stream = open(log, "w", buffering=1)  # noqa: SIM115  # open until the end
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    import train as program

    sys.argv = ["train.py", *flags]
    if kill_at:
        _die_at(kill_at, output_dir)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    sys.exit(program.main(["train", *flags]))


def _die_at(count: int, output_dir: str) -> None:
    left = [count]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        writes = event in WRITING or (event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax")
        if writes and str(arguments[0]).startswith(output_dir):
            left[0] -= 1
            if left[0] == 0:
                if event == "open" and arguments[1][0] == "w" and count % 2 == 0:
                    os.close(os.open(arguments[0], os.O_CREAT | os.O_WRONLY | os.O_TRUNC))
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@dataclass
class Killer:
    """Starts runs and kills them, at moments drawn from `draw`; `kills` counts them by the way it did."""

    draw: random.Random
    folder: Path
    kills: dict[str, int] = field(default_factory=dict)
    _runs: int = 0

    def start(
        self, flags: list[str], output_dir: Path, how: str = "not at all", file_limit: int = 0
    ) -> tuple[int, str]:
        """Runs until the end, of one kind or the other; returns the exit code, -9 if killed, and what was printed.

        `how` is "at a file", with one of its operations on files; "at a time"; "while saving" or "after saving", soon
        after a checkpoint has begun to be written, or is complete; a signal's name, for that signal at any of these
        times; or "not at all".
        """
        self._runs += 1
        log = self.folder / f"log{self._runs}.txt"
        kill_at = self.draw.randrange(1, 120) if how == "at a file" else 0
        process = CONTEXT.Process(target=train, args=(flags, str(output_dir), str(log), kill_at, file_limit))
        process.start()
        if how == "at a time" or (how in SIGNALS and self.draw.random() < 0.3):
            process.join(self.draw.uniform(0, 4))
        elif how == "while saving" or how in SIGNALS:
            self._wait_for(process, output_dir, "checkpoint-*")
        elif how == "after saving":
            self._wait_for(process, output_dir, "checkpoint-*/complete")
        if how in ("at a time", "while saving", "after saving"):
            process.kill()
        elif how in SIGNALS and process.is_alive():
            os.kill(process.pid, signal.Signals[how])
        process.join()
        if process.exitcode == -signal.SIGKILL:
            self.kills[how] = self.kills.get(how, 0) + 1
        return process.exitcode, log.read_text() if log.exists() else ""

    def _wait_for(self, process: multiprocessing.process.BaseProcess, output_dir: Path, pattern: str) -> None:
        seen = set(output_dir.glob(pattern))
        while process.is_alive() and not set(output_dir.glob(pattern)) - seen:
            time.sleep(0.001)
        time.sleep(self.draw.uniform(0, 0.1))
