"""Blocks of the pages of docs/ that scripts write, between `<!-- NAME -->` and `<!-- /NAME -->`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def fill(page: str, name: str, block: str) -> str:
    """Returns the text of a page with another block; ValueError if the page has no block of that name."""
    markers = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not markers.search(page):
        raise ValueError(f"expected the markers <!-- {name} --> and <!-- /{name} -->; the page has none. Add them.")
    return markers.sub(lambda found: f"{found[1]}{block}\n{found[2]}", page)


def differing(blocks: Mapping[tuple[str, str], str], write: bool = False) -> list[str]:
    """Returns the names of the blocks (text by page and name) that differ from the pages; `write` updates the pages."""
    different = []
    for (page, name), block in blocks.items():
        before = (DOCS / page).read_text(encoding="utf-8")
        after = fill(before, name, block)
        if after != before:
            different.append(name)
            if write:
                (DOCS / page).write_text(after, encoding="utf-8")
    return different


def main(blocks: Mapping[tuple[str, str], str], description: str) -> int:
    """Writes the blocks, or checks them with --check; returns the exit code, which is 1 if a checked page differs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page differs")
    check = parser.parse_args().check
    different = differing(blocks, write=not check)
    print(f"different: {', '.join(different) or 'none'}")
    return int(check and bool(different))
