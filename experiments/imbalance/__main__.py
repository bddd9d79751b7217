"""Train what is missing, then write the table and the figure.

python -m experiments.imbalance           # about 12 minutes on one CPU core
python -m experiments.imbalance --report  # the table and the figure alone, from results/
"""

from __future__ import annotations

import argparse

from experiments.imbalance.report import FIGURE, PAGES, write
from experiments.imbalance.train import train_missing


def main() -> None:
    """Read the flag, and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="train nothing")
    if not parser.parse_args().report:
        train_missing()
    write(PAGES, FIGURE)


if __name__ == "__main__":
    main()
