"""Blocks of the pages of docs/ that scripts write, between `<!-- NAME -->` and `<!-- /NAME -->`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def fill(page: str, name: str, block: str) -> str:
    """Replaces a block of a page.

    Args:
        page: Text of the page.
        name: Name of the block.
        block: Its new text.

    Returns:
        The page with it.

    Raises:
        ValueError: If the page has no such block.
    """
    markers = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not markers.search(page):
        raise ValueError(f"expected the markers <!-- {name} --> and <!-- /{name} -->; the page has none. Add them.")
    return markers.sub(lambda found: f"{found[1]}{block}\n{found[2]}", page)


def differing(blocks: Mapping[tuple[str, str], str], write: bool = False) -> list[str]:
    """Compares blocks with the pages.

    Args:
        blocks: Text by page and name.
        write: Whether to write the pages that differ.

    Returns:
        The names of the blocks that differ.
    """
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
    """Writes or checks blocks as the command line says.

    Args:
        blocks: Text by page and name.
        description: What --help prints.

    Returns:
        The exit code: 1 if a page was to be checked and differs.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page differs")
    check = parser.parse_args().check
    different = differing(blocks, write=not check)
    print(f"different: {', '.join(different) or 'none'}")
    return int(check and bool(different))
