"""Makes a scale's tables and figures anew, without any run.

python -m experiments.knowledge_forgetting.analysis experiments/knowledge_forgetting/results/tiny
python -m experiments.knowledge_forgetting.analysis FOLDER --check    # exits with 1 if something is stale
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.knowledge_forgetting.analysis.remake import remake, stale


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the flags, and makes or checks.

    Args:
        arguments: Flags; None takes those of the command line.

    Returns:
        The exit code: 1 if a result file cannot be used or something is stale, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.knowledge_forgetting.analysis",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of the result files")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is stale")
    flags = parser.parse_args(arguments)
    try:
        files = stale(flags.folder) if flags.check else remake(flags.folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(f"{'stale' if flags.check else 'written'}: {file}" for file in files))
    return 1 if flags.check and files else 0


if __name__ == "__main__":
    sys.exit(main())
