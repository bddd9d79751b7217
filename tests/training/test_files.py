"""Files and folders that are there whole or not at all, and damage that is found."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramoe.training.files import SEAL, damage, filled_then_moved, seal, write_json, write_text


def test_json_is_replaced_whole(tmp_path: Path):
    file = tmp_path / "values.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["values.json"]


def test_whoever_writes_a_file_at_once_with_others_leaves_it_whole(tmp_path: Path):
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


def test_a_text_that_cannot_be_written_leaves_what_was_there_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: Path) -> None:
        raise OSError("No space left on device")

    file = tmp_path / "table.md"
    write_text(file, "old")
    monkeypatch.setattr("loramoe.training.files.sync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


class TestFilledThenMoved:
    """A folder's entries come into place together, or not at all."""

    def test_entries_are_replaced_and_others_stay(self, tmp_path: Path):
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "old").touch()
        (tmp_path / "other").touch()
        with filled_then_moved(tmp_path, writer=True) as draft:
            (draft / "adapter").mkdir()
            (draft / "adapter" / "new").touch()
            (draft / "file").touch()
            assert (tmp_path / "adapter" / "old").exists()
        assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {
            "adapter",
            "adapter/new",
            "file",
            "other",
        }

    def test_a_failure_leaves_what_was_there(self, tmp_path: Path):
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "old").touch()

        def save() -> None:
            with filled_then_moved(tmp_path, writer=True) as draft:
                (draft / "adapter").mkdir()
                raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            save()
        assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["adapter", "adapter/old"]

    def test_only_the_writer_touches_the_disk(self, tmp_path: Path):
        with filled_then_moved(tmp_path / "run", writer=False) as draft:
            assert draft == tmp_path / "run" / ".incomplete"
        assert not (tmp_path / "run").exists()


class TestSeal:
    """A sealed folder tells whether it still is what it was."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "weights").write_bytes(b"abcdef")
        (tmp_path / "state").write_bytes(b"xyz")
        (tmp_path / "empty").touch()
        seal(tmp_path)
        return tmp_path

    def test_what_was_sealed_is_whole(self, folder: Path):
        assert damage(folder) is None
        seal(folder)
        assert damage(folder) is None

    def test_a_draft_that_a_killed_process_left_is_not_sealed(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        with monkeypatch.context() as killed:
            killed.setattr("loramoe.training.files.os.replace", lambda draft, file: None)
            seal(folder)
        (left,) = folder.glob(".*")
        seal(folder)
        left.unlink()
        assert damage(folder) is None

    def test_a_folder_without_seal_was_cut_off(self, folder: Path):
        (folder / SEAL).unlink()
        assert damage(folder) == "it was cut off before its end"

    def test_a_missing_file_is_named(self, folder: Path):
        (folder / "state").unlink()
        assert damage(folder) == "state is missing"

    def test_a_shorter_file_is_named(self, folder: Path):
        os.truncate(folder / "adapter" / "weights", 2)
        assert damage(folder) == "adapter/weights has 2 bytes, 6 were written"

    def test_a_changed_file_is_named(self, folder: Path):
        (folder / "state").write_bytes(b"xyZ")
        assert damage(folder) == "state has other bytes than were written"

    def test_a_file_that_cannot_be_read_is_named(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        def bad_block(file: Path) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("loramoe.training.files._fingerprint", bad_block)
        assert damage(folder) == "adapter/weights cannot be read (Input/output error)"

    @pytest.mark.parametrize("content", [b"", b"[]", b'{"state": 3}', b'{"state": ["three", "a"]}', b"\xff", b"{"])
    def test_a_seal_that_cannot_be_read_is_none(self, folder: Path, content: bytes):
        (folder / SEAL).write_bytes(content)
        assert damage(folder) == "its complete cannot be read"

    @given(data=st.data(), size=st.integers(1, 200))
    def test_no_truncation_and_no_flipped_bit_goes_unnoticed(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, size: int
    ):
        folder = tmp_path_factory.mktemp("sealed")
        content = bytes(range(size))
        (folder / "file").write_bytes(content)
        seal(folder)
        place = data.draw(st.integers(0, size - 1))
        flipped = content[:place] + bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))]) + content[place + 1 :]
        (folder / "file").write_bytes(data.draw(st.sampled_from([content[:place], flipped])))
        assert damage(folder) is not None
