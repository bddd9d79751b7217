"""The page in a real browser, Chromium: it is drawn in every look, on a phone and in print, and nothing in it runs.

`bash scripts/browser.sh` installs the browser into an environment of its own; without it these tests are skipped, and
so they are where it is installed but the system lacks libraries that it loads.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from loramoe.report.write import write_pages
from tests.report.reports import HOSTILE, make_measures, make_source

ROOT = Path(__file__).resolve().parents[2]
BROWSER = ROOT / ".venv-browser/bin/python"
LOOKS = ("light", "dark", "phone", "grey")
DARK, LIGHT = 0.35, 0.65  # mean lightness of a picture's edge below, above which it counts as such


def without_browser() -> str:
    """Why there is no browser; empty if there is one."""
    if not BROWSER.is_file():
        return "no browser: bash scripts/browser.sh installs one"
    command = [str(BROWSER), "-c", "import PySide6.QtWebEngineWidgets"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    return f"the browser cannot be loaded: {done.stderr.splitlines()[-1:]}" if done.returncode else ""


WITHOUT = without_browser()
pytestmark = pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the browser says of a page of many layers whose names try to break out, and where its pictures are."""
    folder = tmp_path_factory.mktemp("page")
    measures = make_measures(task_types=(0, 1, 5), expert_types=(1, 1, 1, 1, 0, 0, 0, 0), layers=32, text=HOSTILE)
    write_pages(measures, make_source(HOSTILE), folder)
    command = [str(BROWSER), str(ROOT / "scripts/browser.py"), str(folder / "experts.html"), str(folder / "seen")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder / "seen"


def edge_of(picture: Path) -> float:
    """Mean lightness of the left edge, which is the paper."""
    return float(np.mean(imread(picture)[:, :4, :3]))


def test_nothing_is_asked_of_a_network_and_nothing_runs(seen: tuple[dict[str, Any], Path]):
    facts, _ = seen
    assert [url.rpartition("/")[2] for url in facts["asked"]] == ["experts.html"]
    assert facts["said"] == []
    assert {facts[look]["injected"] for look in LOOKS} == {"undefined"}
    assert {facts[look]["mode"] for look in LOOKS} == {"CSS1Compat"}  # and not the quirks of an unknown document


def test_every_picture_is_drawn_and_described(seen: tuple[dict[str, Any], Path]):
    facts, _ = seen
    for look in LOOKS:
        assert len(facts[look]["images"]) == 7
        assert all(image["drawn"] and image["alt"] for image in facts[look]["images"])


def test_it_fits_a_phone_and_a_sheet_of_paper(seen: tuple[dict[str, Any], Path]):
    facts, _ = seen
    for look in LOOKS:
        assert facts[look]["scroll_width"] <= facts[look]["width"], look


def test_it_follows_the_colour_scheme_but_prints_on_white(seen: tuple[dict[str, Any], Path]):
    _, pictures = seen
    assert edge_of(pictures / "light.png") > LIGHT
    assert edge_of(pictures / "phone.png") > LIGHT
    assert edge_of(pictures / "grey.png") > LIGHT
    assert edge_of(pictures / "dark.png") < DARK


def test_it_prints_without_colour(seen: tuple[dict[str, Any], Path]):
    _, pictures = seen
    grey = imread(pictures / "grey.png")[..., :3]
    assert np.ptp(grey, axis=-1).max() < 0.02
    assert np.ptp(grey) > 0.9  # but there is something on it
    assert (pictures / "page.pdf").read_bytes().startswith(b"%PDF")
