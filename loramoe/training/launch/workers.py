"""torchrun, with signals that reach the workers, and one line on how they ended."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import parse_args, run

from loramoe.utils import FAILED, STOP_SIGNALS, TRY_AGAIN


def run_workers(arguments: Sequence[str]) -> int:
    """Starts the workers with torchrun's arguments, waits for their end, and returns the exit code.

    SIGTERM and SIGUSR1 go to the workers, which then save together and exit with code 75; torchrun would end them after
    30 seconds.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _pass_on)
    names = {field.name for field in dataclasses.fields(LaunchConfig)}
    ours = ["--signals_to_handle", "SIGINT,SIGHUP,SIGQUIT"] if "signals_to_handle" in names else []
    try:
        run(parse_args([*ours, *arguments]))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        code, message = judge(error.failures)
        print(message, file=sys.stderr)
        return code
    except SignalException as stop:  # SIGINT and SIGHUP, and SIGTERM with a torchrun that cannot leave it to us
        print(f"launch: {stop.sigval.name} ended the workers.", file=sys.stderr)
        return 128 + stop.sigval
    return 0


def judge(failures: Mapping[int, ProcessFailure]) -> tuple[int, str]:
    """The exit code and the line for the ends of workers, by rank."""
    if any(failure.exitcode == TRY_AGAIN for failure in failures.values()):
        return TRY_AGAIN, "launch: the workers were asked to stop, and have saved. Start the same command to go on."

    def is_cause(failure: ProcessFailure) -> bool:  # others fail because that one was killed, or torchrun ends them
        return failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM

    rank, first = min(failures.items(), key=lambda item: (not is_cause(item[1]), item[1].timestamp))
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        hint = " The system kills processes so if memory runs out." if name == "SIGKILL" else ""
        return 128 - first.exitcode, f"launch: rank {rank} was ended by {name}; the others were stopped.{hint}"
    return first.exitcode or FAILED, (
        f"launch: rank {rank} failed with code {first.exitcode}; the others were stopped. Its error is above."
    )


def _pass_on(number: int, frame: Any) -> None:
    workers = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "TORCHELASTIC_RUN_ID" in child.environ():
                child.send_signal(number)
                workers.append(child)
    if not workers:  # nothing has begun that could be saved
        sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(run_workers(sys.argv[1:]))
