"""The files of a report are there whole, or what was there before is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from loramoe.report import write
from loramoe.report.write import check_folder, write_pages
from tests.report.reports import make_measures, make_source

FILES = {"experts.html", "experts.md", "experts.json", "experts_shares.png", "experts_shares_by_layer.png"}
FILES |= {"experts_gates_type0.png", "experts_gates_type1.png", "experts_entropy.png", "experts_variation.png"}


def test_all_files_are_written_and_others_stay(tmp_path: Path):
    folder = tmp_path / "new" / "report"
    write_pages(make_measures(task_types=(0, 1, 5)), make_source(), folder)
    (folder / "mine.txt").write_text("mine")
    measures = make_measures()
    write_pages(measures, make_source(blc_target="match"), folder)
    assert {file.name for file in folder.iterdir()} == {*FILES, "mine.txt"}  # no picture of type 5 is left
    told = json.loads((folder / "experts.json").read_text())
    assert (told["adapter"], told["blc_target"], told["rows"]) == ("adapter", "match", 12)
    assert told["gate_TLE"] == measures.gate_TLE
    assert told["bands"][0]["liked"][0][0].keys() == {"id", "text", "count", "gate", "ratio"}


def test_what_fails_half_way_leaves_the_report_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_pages(make_measures(), make_source(), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_: object) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(write, "_as_json", fail)
    with pytest.raises(OSError, match="no space left"):
        write_pages(make_measures(task_types=(0,)), make_source("other"), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file, not a folder"):
        check_folder(tmp_path / "file" / "below")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="cannot be written to"):
        check_folder(tmp_path / "a")
