"""Starts train.py on the accelerators of this machine, or of several.

    python -m loramoe.training.launch [name=value …] train.py [flags …]

`run_loramoe.sh` passes its variables as name=value. Those of the machine (`plan.MACHINE`) decide how many processes are
started and with which engine; the others become flags before the user's, so that the user's win. This
process becomes train.py, or torchrun for several processes.
"""

from __future__ import annotations

import itertools
import os
import re
import sys

from loramoe.training.launch.plan import find_accelerators, make_plan
from loramoe.training.launch.variables import check_names
from loramoe.utils import FAILED, UsageError


def main(argv: list[str] | None = None) -> int:
    """Plans and starts a run; returns the exit code where it cannot be started."""
    words = list(sys.argv[1:] if argv is None else argv)
    pairs = list(itertools.takewhile(re.compile(r"\w+=").match, words))
    values = dict(pair.split("=", 1) for pair in pairs)
    program, *flags = words[len(pairs) :] or ["train.py"]
    try:
        check_names(values, os.environ)
        plan = make_plan(values, flags, find_accelerators(), os.environ)
    except UsageError as error:
        print(f"launch: {error}", file=sys.stderr)
        return FAILED
    for note in plan.notes:
        print(f"launch: {note}", file=sys.stderr)
    os.environ.update(plan.environment)
    sys.stdout.flush()
    sys.stderr.flush()
    torchrun = [] if plan.torchrun is None else ["-m", "loramoe.training.launch.workers", *plan.torchrun]
    # Frees what torch holds on the devices.
    return os.execv(sys.executable, [sys.executable, *torchrun, program, *plan.flags])


if __name__ == "__main__":
    sys.exit(main())
