"""Every benchmark of a device, one after another, then the report.

python -m benchmarks cpu          # about 10 minutes on 2 cores
python -m benchmarks gpu          # meant to take under 8 minutes on one GPU, not run yet
python -m benchmarks cpu --quick  # tiny sizes, in seconds, to see that everything runs
python -m benchmarks data         # reading and tokenising up to a million rows, some minutes on one CPU
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from time import perf_counter

from benchmarks import report

DEVICES = {"cpu": "cpu", "gpu": "cuda"}
BENCHMARKS = ("layer", "step", "decode", "packing", "live")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all that the flags ask for.

    Args:
        arguments: Flags; None takes those of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*DEVICES, "data"])
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of rows, for data alone")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; nothing is measured, no page changes")
    flags = parser.parse_args(arguments)
    for name in ("data",) if flags.what == "data" else BENCHMARKS:
        print(f"=== {name}", flush=True)
        began = perf_counter()
        size = flags.rows if name == "data" else DEVICES[flags.what]
        importlib.import_module(f"benchmarks.{name}").main(size, flags.quick)
        print(f"{name} took {perf_counter() - began:.0f} s", flush=True)
    if not flags.quick:
        report.main([])


if __name__ == "__main__":
    main()
