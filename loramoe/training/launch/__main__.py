"""Starts train.py on the accelerators of this machine, or of several.

    python -m loramoe.training.launch [--dry] [name=value …] train.py [flags …]

`run_loramoe.sh` passes its variables as name=value. Those of the machine (`plan.MACHINE`) decide how many processes are
started and with which engine; the others become flags before the user's, so that the user's win. `--dry` prints the
command. This process becomes train.py, or torchrun for several processes.
"""

from __future__ import annotations

import os
import re
import shlex
import sys

from loramoe.training.launch.plan import find_accelerators, make_plan
from loramoe.training.launch.variables import check_names
from loramoe.utils import FAILED, UsageError


def main(argv: list[str] | None = None) -> int:
    """Plans and starts a run; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    dry = words[:1] == ["--dry"]
    words = words[dry:]
    first = next((index for index, word in enumerate(words) if not re.match(r"\w+=", word)), None)
    if first is None:
        print("usage: python -m loramoe.training.launch [--dry] [name=value …] train.py [flags …]", file=sys.stderr)
        return FAILED
    values = dict(word.split("=", 1) for word in words[:first])
    try:
        check_names(values, os.environ)
        plan = make_plan(values, words[first + 1 :], find_accelerators(), os.environ)
    except UsageError as error:
        print(f"launch: {error}", file=sys.stderr)
        return FAILED
    for note in plan.notes:
        print(f"launch: {note}", file=sys.stderr)
    command = [words[first], *plan.flags]
    if not dry:
        os.environ.update(plan.environment)
        sys.stdout.flush()
        sys.stderr.flush()
        torchrun = [] if plan.torchrun is None else ["-m", "loramoe.training.launch.workers", *plan.torchrun]
        os.execv(sys.executable, [sys.executable, *torchrun, *command])  # what torch holds on the devices is freed
    settings = [f"{name}={shlex.quote(value)}" for name, value in plan.environment.items() if name != "PATH"]
    launcher = ["python"] if plan.torchrun is None else ["torchrun", *plan.torchrun]
    print(" ".join([*settings, shlex.join([*launcher, *command])]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
