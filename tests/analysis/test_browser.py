"""The report in a real browser: each look is drawn, fits, and runs nothing. `bash scripts/browser.sh` installs it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from loramoe import LoraMoeConfig
from loramoe.analysis import write_report

ROOT = Path(__file__).resolve().parents[2]
BROWSER = ROOT / ".venv-browser/bin/python"
LOOKS = ("light", "dark", "phone", "grey")
HOSTILE = "<script>window.injected=1</script>\"'&"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER.is_file(), reason="bash scripts/browser.sh installs it")]


@pytest.fixture
def seen(make_stats, tmp_path: Path) -> dict[str, Any]:
    """What the browser reports of a page of many layers with names that try to run code; pictures are in tmp_path."""
    if (done := subprocess.run([BROWSER, "-c", "import PySide6.QtWebEngineWidgets"], check=False)).returncode:
        pytest.skip(f"the browser cannot be loaded: {done}")
    stats = make_stats(task_types=(0, 1, 5), expert_types=(0, 1, 5, 5, 0, 1), layers=32, own=0.4)
    write_report(stats, LoraMoeConfig(), {0: HOSTILE}, tmp_path, adapter=HOSTILE, base_model=HOSTILE, data=HOSTILE)
    command = [BROWSER, ROOT / "scripts/browser.py", tmp_path / "experts.html", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_report_in_each_look(seen: dict[str, Any], tmp_path: Path):
    assert [url.rpartition("/")[2] for url in seen["asked"]] == ["experts.html"]
    assert seen["said"] == []
    for look in LOOKS:
        assert (seen[look]["injected"], seen[look]["mode"]) == ("undefined", "CSS1Compat"), look
        assert seen[look]["scroll_width"] <= seen[look]["width"], look
        assert [image["drawn"] and bool(image["alt"]) for image in seen[look]["images"]] == [True, True], look
    edges = {look: float(np.mean(imread(tmp_path / f"{look}.png")[:, :4, :3])) for look in LOOKS}
    assert edges.pop("dark") < 0.35
    assert min(edges.values()) > 0.65  # printed on white too
    grey = imread(tmp_path / "grey.png")[..., :3]
    assert np.ptp(grey, axis=-1).max() < 0.02
    assert np.ptp(grey) > 0.9
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
