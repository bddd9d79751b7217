"""The report's files: complete or not there, well-formed, escaped, and with the numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from loramoe import LoraMoeConfig
from loramoe.analysis import ReportInfo, write_report
from loramoe.analysis.report import FIGURES, NUMBERS, PAGE, remove_report

HOSTILE = "<script>window.injected=1</script>\"'&"


def info(name: str = "adapter", **options: object) -> ReportInfo:
    config = LoraMoeConfig(lora_nums=4, **options)
    return ReportInfo(name, f"base of {name}", f"{name}.json", config, {0: "tasks", 1: f"knowledge {name}"})


def test_the_page_is_one_well_formed_file_and_opens_with_the_conclusion(make_stats, tmp_path: Path):
    stats = make_stats()
    conclusion = write_report(stats, info(), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {PAGE, NUMBERS, *FIGURES}
    page = ElementTree.parse(tmp_path / PAGE)
    first = page.find(".//main/p")
    assert first.text == conclusion
    assert conclusion.startswith("Separation 10 of 10 points")
    images = page.findall(".//img")
    assert [image.get("src").startswith("data:image/png;base64,") for image in images] == [True, True]
    assert all(image.get("alt") for image in images)
    text = " ".join(page.getroot().itertext()).replace("\N{NO-BREAK SPACE}", " ")
    for part in ("55.0 % (55.0 %)", "10 tasks samples of 1,000 tokens", "4 of rank 4 in each of 6 linear layers"):
        assert part in text
    numbers = json.loads((tmp_path / NUMBERS).read_text())
    np.testing.assert_allclose(numbers["gate_TLE"], stats.gate_TLE)
    assert numbers["separation"] == pytest.approx(0.1)
    assert (numbers["adapter"], numbers["blc_target"], numbers["layers"]) == ("adapter", "match", list(stats.layers))


def test_markup_in_names_stays_text(make_stats, tmp_path: Path):
    write_report(make_stats(), info(HOSTILE), tmp_path)
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "<script" not in page
    assert HOSTILE in " ".join(ElementTree.fromstring(page).itertext())


@pytest.mark.parametrize(
    ("options", "changes"),
    [({}, {"entropy_TL": None}), ({"task_types": (0,)}, {})],
    ids=["without entropy", "of one type"],
)
def test_pages_without_a_part(make_stats, tmp_path: Path, options: dict[str, object], changes: dict[str, object]):
    write_report(dataclasses.replace(make_stats(**options), **changes), info(blc_weight=0), tmp_path)
    assert "none (blc_weight=0)" in (tmp_path / PAGE).read_text(encoding="utf-8")


def test_removing_leaves_other_files(make_stats, tmp_path: Path):
    write_report(make_stats(), info(), tmp_path)
    (tmp_path / "notes.txt").touch()
    remove_report(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
