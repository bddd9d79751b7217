"""Put the scripts that make the tiny world on the path: they are run as files and are no part of the library."""

from __future__ import annotations

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "scripts" / "tiny_world"))
