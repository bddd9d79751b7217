"""How a process of a distributed run ends: with its launcher, and without tearing the interpreter down.

A thread of gloo that drops the last reference to a tensor asks for Python's lock. Once the interpreter is being taken
apart, asking ends the thread, inside a C++ destructor, and that aborts the process ("terminate called without an active
exception", exit code -6): now and then a training that had finished and saved everything was reported as failed.
`destroy_process_group` does not end these threads while anything still holds a group, as DeepSpeed and DDP do; and when
DDP is the last to let go of one, it waits with Python's lock in hand for a thread that waits for the lock (torch 2.13,
seen once). So a group of CPUs is never destroyed: the process just ends.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time

from accelerate import PartialState

from loramoe.training.exit_codes import FAILED


def leave(code: int = 0) -> None:
    """Ends this process, if it is one of several; does nothing if it is the only one.

    What a normal end does for others to see is done: threads are waited for, functions of `atexit` run (trackers close
    their files there), and what was printed is written out. Files that nobody closed are not flushed.

    Args:
        code: The exit code.
    """
    if PartialState().num_processes == 1:
        return
    if code == 0 and PartialState().device.type != "cpu":
        PartialState().destroy_process_group()  # as NCCL asks for; after a failure it might wait for the others
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its own children
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_with_launcher(seconds: float = 1.0) -> None:
    """Ends this process when its launcher is gone; does nothing in a process that torchrun has not started.

    A launcher that is killed cannot stop its workers: they would go on, and write where the next start writes.

    Args:
        seconds: How often to look.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Taken out of the environment, so that nothing that this process starts takes our launcher for its own.
        launcher = int(os.environ.pop("LORAMOE_LAUNCHER", os.getppid()))
        threading.Thread(target=_watch, args=(launcher, seconds), daemon=True).start()


def _watch(launcher: int, seconds: float) -> None:
    while os.getppid() == launcher:
        time.sleep(seconds)
    print("the launcher is gone, so this process ends too", file=sys.stderr, flush=True)
    os._exit(FAILED)
