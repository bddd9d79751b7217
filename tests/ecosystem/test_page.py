"""docs/ecosystem.md names every script, with the versions that its environment pins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/ecosystem.md").read_text(encoding="utf-8")
SCRIPTS = sorted(file for file in (ROOT / "scripts/ecosystem").glob("*.sh") if file.stem not in ("all", "common"))
PINS = [(ROOT / name).read_text() for name in ("requirements-engines.txt", "requirements-dev.txt", "requirements.txt")]


def row(script: str) -> str:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{script}`" in line]
    assert len(rows) == 1, f"docs/ecosystem.md has {len(rows)} rows for {script}"
    return rows[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_has_a_row_with_the_versions_that_it_runs(script: Path) -> None:
    shown = re.search(r"^versions (\S+)", script.read_text(), re.MULTILINE)
    assert shown, "it prints its versions"
    own = script.with_suffix(".txt")
    texts = [script.read_text(), own.read_text() if own.exists() else "", *PINS]
    name = shown[1].replace("_", "[_-]")
    pinned = next(
        found for text in texts if (found := re.search(rf"^(?:.* )?{name}(?:\[\w+\])?==([\w.]+)", text, re.MULTILINE))
    )
    assert pinned[1] in row(script.name).split("|")[2]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_begins_with_what_it_shows_and_ends_with_tests(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    assert any(line.strip().startswith("check ") for line in lines[-3:])
