"""Files and folders that are written whole or not at all, errors of libraries, values of flags."""

from __future__ import annotations

import json
import os
from argparse import ArgumentTypeError
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loramoe.utils import (
    UsageError,
    as_usage_error,
    atomic_save_dir,
    check_output_dir,
    comma_list,
    not_negative,
    positive,
    replace_dir,
    require,
    write_json,
    write_text,
)


def test_several_writers_of_one_file_leave_it_whole(tmp_path: Path):
    file = tmp_path / "values.json"
    write_json(file, [0] * 1000)

    def write(writer: int) -> list[list[int]]:
        seen = []
        for _ in range(50):
            write_json(file, [writer] * 1000)
            seen.append(json.loads(file.read_text()))
        return seen

    with ThreadPoolExecutor(4) as writers:
        seen = [values for read in writers.map(write, range(1, 5)) for values in read]
    assert all(len(values) == 1000 and len(set(values)) == 1 for values in seen)
    assert list(tmp_path.iterdir()) == [file]


def test_a_text_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: Path) -> None:
        raise OSError("No space left on device")

    file = tmp_path / "table.md"
    write_text(file, "old")
    monkeypatch.setattr("loramoe.utils.sync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def save(folder: Path, error: Exception | None = None) -> None:
    before = entries(folder)
    with atomic_save_dir(folder) as draft:
        (draft / "adapter").mkdir()
        (draft / "adapter" / "new").touch()
        (draft / "file").touch()
        assert entries(folder) > before
        if error:
            raise error


def test_entries_of_a_folder_are_replaced_and_others_stay(tmp_path: Path):
    for name in ("adapter", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "adapter" / "old").touch()
    before = entries(tmp_path)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, OSError("disk full"))
    assert entries(tmp_path) == before
    save(tmp_path)
    assert entries(tmp_path) == {"adapter", "adapter/new", "file", "other"}


def test_the_last_entry_is_moved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    moved: list[str] = []
    monkeypatch.setattr("loramoe.utils._replace", lambda new, target: (moved.append(target.name), new.unlink()))
    with atomic_save_dir(tmp_path, last="a") as draft:
        for name in "abc":
            (draft / name).touch()
    assert sorted(moved) == ["a", "b", "c"]
    assert moved[-1] == "a"


def test_only_the_writer_touches_the_disk(tmp_path: Path):
    with atomic_save_dir(tmp_path / "run", writer=False) as draft:
        assert draft == tmp_path / "run" / ".incomplete"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool):
    target = tmp_path / "result"
    if linked:
        (tmp_path / "disk").mkdir()
        target.symlink_to(tmp_path / "disk")
    for name in ("one", "two"):
        with replace_dir(target) as draft:
            (draft / name).write_text(name)
        assert entries(target) == {name}
    assert target.is_symlink() == linked
    replace = os.replace

    def fail_for_the_draft(source: Path, to: Path) -> None:
        if (source / "three").exists():
            raise OSError("disk full")
        replace(source, to)

    monkeypatch.setattr("os.replace", fail_for_the_draft)
    with pytest.raises(OSError, match="disk full"), replace_dir(target) as draft:
        (draft / "three").touch()
    assert entries(target) == {"two"}


@pytest.mark.parametrize(
    ("files", "overwrite", "named"),
    [
        ({"report.json": '{"files": ["report.json"]}', "notes.txt": ""}, True, "notes.txt"),
        ({"report.json": "[]"}, True, "report.json"),
        ({"report.json": '{"files": ["report.json"]}'}, False, "--overwrite"),
    ],
)
def test_a_folder_in_use_is_refused(tmp_path: Path, files: dict[str, str], overwrite: bool, named: str):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=named):
        check_output_dir(tmp_path, overwrite, "report.json")


def test_a_folder_that_is_free_or_holds_an_earlier_result(tmp_path: Path):
    check_output_dir(tmp_path / "new", False, "report.json")
    check_output_dir(tmp_path, False, "report.json")
    (tmp_path / "report.json").write_text('{"files": ["report.json"]}')
    check_output_dir(tmp_path, True, "report.json")
    with pytest.raises(UsageError, match="is a file"):
        check_output_dir(tmp_path / "report.json", True, "report.json")


def test_an_error_of_a_library_becomes_one_line():
    with pytest.raises(UsageError, match=r"^the flag: no such name$"), as_usage_error(OSError, about="the flag:"):
        raise FileNotFoundError("no such\n  name")
    for error in (KeyError("a bug"), UsageError("already one")):
        with pytest.raises(type(error)) as passed, as_usage_error(ValueError):
            raise error
        assert passed.value is error


def test_values_of_flags():
    assert (positive("1"), positive("032")) == (1, 32)
    assert (not_negative("0"), not_negative("1e-3")) == (0.0, 0.001)
    assert (comma_list("a, b,"), comma_list(" "), comma_list(None)) == (["a", "b"], None, None)


@pytest.mark.parametrize(
    ("read", "text"), [(positive, "0"), (positive, "1.5"), (not_negative, "-0.1"), (not_negative, "inf")]
)
def test_values_of_flags_out_of_range(read, text):
    with pytest.raises(ArgumentTypeError, match=f"got '{text}'"):
        read(text)


def test_a_flag_needs_its_package():
    require("json", "--json true")
    with pytest.raises(UsageError, match=r"--x true needs no_such_module.*pip install no-such"):
        require("no_such_module", "--x true", package="no-such")
