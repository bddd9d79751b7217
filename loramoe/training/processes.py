"""How a process of a distributed run ends: without taking the interpreter apart under gloo's feet.

A thread of gloo that drops the last reference to a tensor asks for Python's lock. Once the interpreter is being taken
apart, asking ends the thread, inside a C++ destructor, and that aborts the process ("terminate called without an active
exception", exit code -6): now and then a training that had finished and saved everything was reported as failed.
`destroy_process_group` does not end these threads while anything still holds a group, as DeepSpeed and DDP do.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading

from accelerate import PartialState


def leave() -> None:
    """Ends this process in success, if it is one of several; does nothing if it is the only one.

    What a normal end does for others to see is done: threads are waited for, functions of `atexit` run (trackers close
    their files there), and what was printed is written out. Files that nobody closed are not flushed.
    """
    if PartialState().num_processes == 1:
        return
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its own children
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
