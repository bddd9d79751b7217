"""Measures what the mixture costs, and writes the tables of docs/performance.md.

python -m benchmarks                            # all benchmarks (15 minutes on 2 cores), then the tables
python -m benchmarks step packing --device cpu  # some of them
python -m benchmarks layer --quick              # tiny sizes: shows that the code runs
python -m benchmarks tables --check             # fails if a table is out of date
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from benchmarks import harness, tables

BENCHMARKS = ("layer", "step", "decode", "packing")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named benchmarks and update the tables; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, "tables", []], metavar="NAME")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; no table changes")
    parser.add_argument("--check", action="store_true", help="with tables: write nothing, fail if one is out of date")
    flags = parser.parse_args(argv)
    for name in flags.names or BENCHMARKS:
        if name != "tables":
            device = harness.start(flags.device)
            body = {"quick": flags.quick, **importlib.import_module(f"benchmarks.{name}").run(device, flags.quick)}
            print(harness.write_result(name, device.type, body))
    stale = not flags.quick and tables.update(flags.check)
    return int(flags.check and stale)


if __name__ == "__main__":
    raise SystemExit(main())
