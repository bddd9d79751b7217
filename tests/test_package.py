"""The wheel: it holds every package of the library, its templates, and neither overlay."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_nothing_else(tmp_path: Path) -> None:
    files = subprocess.run(["git", "ls-files", "."], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        if name.startswith(("loramoe/", "peft/", "transformers/", "pyproject", "README.md", "LICENSE")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", "dist", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    built = zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))).namelist()
    library = {name for name in files.stdout.splitlines() if name.startswith("loramoe/")}
    assert {name for name in built if ".dist-info/" not in name} == library
