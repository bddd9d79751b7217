"""The package itself: what it offers, and how little it loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import loramoe.data

# An empty parent stands for the library's own, so that what is loaded is the doing of loramoe.data alone.
PROBE = """
import sys, types
parent = types.ModuleType("loramoe")
parent.__path__ = [sys.argv[1]]
sys.modules["loramoe"] = parent
import loramoe.data
print(*sorted(sys.modules))
"""


def test_importing_loads_nothing_heavy_and_nothing_else_of_ours():
    folder = Path(loramoe.data.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", PROBE, str(folder)], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert loaded.isdisjoint({"datasets", "transformers", "tokenizers", "peft", "pyarrow"})
    ours = {name for name in loaded if name.startswith("loramoe.")}
    assert all(name.startswith(("loramoe.data", "loramoe.utils")) for name in ours)
    assert "loramoe.data.collate" in ours


def test_every_public_name_is_there():
    assert all(getattr(loramoe.data, name) for name in loramoe.data.__all__)
