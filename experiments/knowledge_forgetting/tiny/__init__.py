"""The tiny scale: `data/tiny_llama` and the world of 5,000 facts that it knows.

The world is made by the scripts that made the model, which are run as files: here their folder joins the path.
"""

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
sys.path.append(str(REPO / "scripts" / "tiny_world"))
