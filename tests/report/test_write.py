"""Each file of a report is there whole, or what was there before is; and the page comes last."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from loramoe import utils
from loramoe.report import write
from loramoe.report.write import check_folder, remove_pages, write_pages
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


def test_the_page_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    moved: list[str] = []
    replace = utils._replace
    monkeypatch.setattr(utils, "_replace", lambda new, target: (moved.append(target.name), replace(new, target)))
    write_pages(make_measures(), make_source(), tmp_path)
    assert set(moved) == FILES
    assert moved[-1] == "experts.html"


def test_the_draft_of_a_checkpoint_is_left_alone(tmp_path: Path):
    (tmp_path / ".incomplete").mkdir()
    (tmp_path / ".incomplete" / "adapter").touch()
    write_pages(make_measures(), make_source(), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {*FILES, ".incomplete"}
    assert (tmp_path / ".incomplete" / "adapter").is_file()


def test_names_that_are_no_text_can_be_told(tmp_path: Path):
    """As Python gives those of files whose bytes are no UTF-8."""
    write_pages(make_measures(), make_source("caf\udce9"), tmp_path)
    assert json.loads((tmp_path / "experts.json").read_text())["data"] == "caf\udce9.json"
    assert "caf\\udce9" in (tmp_path / "experts.html").read_text(encoding="utf-8")


def test_only_what_a_report_writes_is_removed(tmp_path: Path):
    write_pages(make_measures(task_types=(-1, 0)), make_source(), tmp_path)
    for folder in ("experts_old", ".experts.incomplete"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "experts.html").touch()
    for name in ("experts_notes.txt", "experts_gates_type1_mine.png"):
        (tmp_path / name).touch()
    remove_pages(tmp_path)
    mine = {"experts_old", "experts_notes.txt", "experts_gates_type1_mine.png"}
    assert {file.name for file in tmp_path.iterdir()} == mine
    remove_pages(tmp_path / "not there")
    remove_pages(tmp_path / "experts_notes.txt")
    assert {file.name for file in tmp_path.iterdir()} == mine


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file, not a folder"):
        check_folder(tmp_path / "file" / "below")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="cannot be written to"):
        check_folder(tmp_path / "a")
