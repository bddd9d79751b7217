"""Writes the tables and figures of README and docs from `results/*.json`, or checks that they are those of today.

A page says where a table belongs by a pair of comments; what stands between them is replaced:

    <!-- benchmarks:bars -->
    <!-- /benchmarks:bars -->

    python -m benchmarks.report            # writes the tables and docs/figures/benchmark_*.png
    python -m benchmarks.report --check    # exits with 1 if a page or a figure is stale
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import draw_all, stale
from benchmarks.harness import ROOT
from benchmarks.tables import TABLES

PAGES = ("README.md", "README_zh.md", "docs/performance.md", "docs/data.md", "docs/training.md")
FIGURES = ROOT / "docs/figures"
MARKER = re.compile(r"<!-- benchmarks:(\w+) -->")


def filled(text: str) -> str:
    """A page with every table of today.

    Args:
        text: The page.

    Returns:
        The page, what stood between each pair of markers replaced.

    Raises:
        ValueError: If a marker names no table, or is not closed.
    """
    for name in MARKER.findall(text):
        if name not in TABLES:
            raise ValueError(f"benchmarks:{name} names no table; there are {', '.join(TABLES)}.")
        begin, end = f"<!-- benchmarks:{name} -->", f"<!-- /benchmarks:{name} -->"
        before, _, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not closed:
            raise ValueError(f"{begin} is not closed; put {end} on a line of its own after it.")
        text = f"{before}{begin}\n{TABLES[name]()}\n{end}{after}"
    return text


def stale_pages(pages: Sequence[Path]) -> list[Path]:
    """Pages whose tables are not those of today.

    Args:
        pages: The pages.

    Returns:
        Those that `write` would change.
    """
    return [page for page in pages if filled(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]


def write(pages: Sequence[Path], figures: Path) -> None:
    """Write tables and figures, and say which files changed.

    Args:
        pages: The pages.
        figures: The folder of the figures.
    """
    for page in stale_pages(pages):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"written: {page}")
    if stale(figures):
        print("\n".join(f"drawn: {file}" for file in draw_all(figures)))


def check(pages: Sequence[Path], figures: Path) -> int:
    """Say which tables and figures are stale.

    Args:
        pages: The pages.
        figures: The folder of the figures.

    Returns:
        The exit code: 1 if any is, else 0.
    """
    found = [*stale_pages(pages), *stale(figures)]
    for file in found:
        print(f"stale: {file}; run python -m benchmarks.report", file=sys.stderr)
    return 1 if found else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the flags, and write or check.

    Args:
        arguments: Flags; None takes those of the command line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="pages with markers (default: README and docs)")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder of the figures")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is stale")
    flags = parser.parse_args(arguments)
    pages = flags.pages or [page for page in (ROOT / name for name in PAGES) if page.exists()]
    if flags.check:
        return check(pages, flags.figures)
    write(pages, flags.figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
