"""docs/conformance.md and the tests tell the same: each test it names is there, and each one here is on the page."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests/conformance/test_conforming_{}.py"
ROWS = [
    line
    for line in (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| promise |")
]


def named(row: str) -> list[tuple[str, str]]:
    """File and name of each test that a row gives."""
    found = re.findall(r"`([\w./]+)::(test_\w+)`", row)
    return [(file if "/" in file else HERE.format(file), name) for file, name in found]


@lru_cache
def declared(file: str) -> dict[str, bool]:
    """The tests of a file, and whether an older peft may skip one, or a case of it."""
    functions = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    marks = {
        node.name: any(
            isinstance(part, ast.Name) and part.id == "later_peft"
            for mark in node.decorator_list
            for part in ast.walk(mark)
        )
        for node in functions
        if isinstance(node, ast.FunctionDef)
    }
    return {name: later for name, later in marks.items() if name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split(" | ")[0][2:50])
def test_a_row_says_what_holds_and_names_tests_that_are_there(row: str) -> None:
    promise, ours, tests = row.strip("| ").split(" | ")
    assert re.match(r"(holds|stricter|refused|not offered)\b", ours), promise
    assert named(tests), f"{promise!r} has no test"
    for file, name in named(tests):
        assert name in declared(file), f"{file} has no {name}"
    assert ("†" in ours) == any(declared(file)[name] for file, name in named(tests)), f"† of {promise!r}"


def test_every_test_of_conformance_is_on_the_page() -> None:
    on_page = {test for row in ROWS for test in named(row)}
    here = {
        (f"tests/conformance/{file.name}", name)
        for file in Path(__file__).parent.glob("test_*.py")
        if file != Path(__file__)
        for name in declared(f"tests/conformance/{file.name}")
    }
    assert not here - on_page
