"""docs/ecosystem.md has a row for every script, with the versions that its environment pins."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/ecosystem.md").read_text(encoding="utf-8")
SCRIPTS = sorted(file for file in (ROOT / "scripts/ecosystem").glob("*.sh") if file.stem not in ("all", "common"))
PINS = [(ROOT / name).read_text() for name in ("requirements-engines.txt", "requirements-dev.txt", "requirements.txt")]


def test_every_script_has_a_row_with_the_version_that_it_runs() -> None:
    for script in SCRIPTS:
        (row,) = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{script.name}`" in line]
        text, own = script.read_text(), script.with_suffix(".txt")
        name = re.search(r"^versions (\S+)", text, re.MULTILINE)[1].replace("_", "[_-]")
        pins = "\n".join([text, own.read_text() if own.exists() else "", *PINS])
        assert re.search(rf"^(?:.* )?{name}(?:\[\w+\])?==([\w.]+)", pins, re.MULTILINE)[1] in row.split("|")[2], row
        assert "\ncheck " in text, script
