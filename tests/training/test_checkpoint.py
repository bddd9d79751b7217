"""Checkpoints: only a complete one is resumed from, and a save never removes the last good one."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from loramoe.training.checkpoint import (
    ADAPTER,
    ARGUMENTS,
    COMPLETE,
    METRICS,
    KeepCheckpoints,
    as_save_error,
    checkpoints,
    clear,
    damage,
    latest_complete,
    lock_run,
    mark_complete,
    resume_point,
)
from loramoe.utils import SaveError, write_json


def make(output_dir: Path, step: int, complete: bool = True, parts: int = 0) -> Path:
    """A checkpoint, with the state of the optimizer or so many parts of DeepSpeed's."""
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    if parts:
        (folder / f"global_step{step}").mkdir()
    files = [f"global_step{step}/zero_pp_rank_{rank}_optim_states.pt" for rank in range(parts)] or ["optimizer.pt"]
    for file in files:
        (folder / file).write_text("the state of the optimizer")
    if complete:
        mark_complete(folder)
    return folder


def names(folders: list[Path]) -> list[str]:
    return [folder.name for folder in folders]


def test_checkpoints_are_ordered_by_step_and_nothing_else_is_one(tmp_path: Path):
    for step in (10, 9, 100):
        make(tmp_path, step)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert names(checkpoints(tmp_path)) == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert checkpoints(tmp_path / "none") == []


def test_what_is_missing_or_cut_off_is_named(tmp_path: Path):
    folder = make(tmp_path, 10)
    assert damage(folder) is None
    os.truncate(folder / "optimizer.pt", 7)
    assert damage(folder) == "optimizer.pt has 7 bytes, 26 were written"
    (folder / "optimizer.pt").unlink()
    assert damage(folder) == "optimizer.pt is missing"
    (folder / COMPLETE).unlink()
    assert "cut off" in (damage(folder) or "")
    assert "no such folder" in (damage(tmp_path / "none") or "")


def test_a_draft_that_a_killed_process_left_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make(tmp_path, 10, complete=False)
    with monkeypatch.context() as killed:
        killed.setattr("loramoe.utils.os.replace", lambda draft, file: None)
        mark_complete(folder)
    (draft,) = folder.glob(".*")
    mark_complete(folder)
    draft.unlink()
    assert damage(folder) is None


@pytest.mark.parametrize("content", [b"", b"[]", b'{"state": "three"}', b"\xff", b"{"])
def test_a_damaged_marker_is_none(tmp_path: Path, content: bytes):
    (make(tmp_path, 10) / COMPLETE).write_bytes(content)
    assert "cannot be read" in (damage(tmp_path / "checkpoint-10") or "")


def test_the_newest_complete_one_is_found_and_others_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    complete = make(tmp_path, 10)
    (make(tmp_path, 20) / "optimizer.pt").unlink()
    make(tmp_path, 30, complete=False)
    assert latest_complete(tmp_path) == complete
    cut_off, damaged = caplog.messages
    assert "checkpoint-30 is not complete" in cut_off
    assert "checkpoint-20 is not complete" in damaged


class TestResumePoint:
    """Where a run starts."""

    def test_a_new_folder_starts_at_the_beginning(self, tmp_path: Path):
        assert resume_point(tmp_path / "new", None, False, {}) is None

    def test_an_interrupted_run_goes_on_if_its_recipe_is_the_same(self, tmp_path: Path):
        newest = make(tmp_path, 10)
        write_json(tmp_path / ARGUMENTS, {"lora_rank": 4})
        assert resume_point(tmp_path, None, False, {"lora_rank": 4, "new_in_this_version": 1}) == newest
        assert resume_point(tmp_path, None, True, {"lora_rank": 4}) is None
        with pytest.raises(FileExistsError, match=r"lora_rank was 4, now 8"):
            resume_point(tmp_path, None, False, {"lora_rank": 8})
        assert resume_point(tmp_path, "true", False, {"lora_rank": 8}) == newest

    def test_another_number_of_processes_with_the_same_product_goes_on(self, tmp_path: Path):
        newest = make(tmp_path, 10)
        write_json(tmp_path / ARGUMENTS, {"world_size": 2, "gradient_accumulation_steps": 2, "deepspeed": None})
        alike = {"world_size": 1, "gradient_accumulation_steps": 4, "deepspeed": None}
        assert resume_point(tmp_path, None, False, alike) == newest
        with pytest.raises(FileExistsError, match=r"world_size was 2, now 1"):
            resume_point(tmp_path, None, False, {**alike, "gradient_accumulation_steps": 2})
        with pytest.raises(FileExistsError, match=r"deepspeed was None, now 'zero2.json'"):
            resume_point(tmp_path, None, False, {**alike, "deepspeed": "zero2.json"})

    def test_deepspeed_resumes_with_as_many_processes_alone(self, tmp_path: Path):
        folder = make(tmp_path, 10, parts=2)
        write_json(tmp_path / ARGUMENTS, {"world_size": 2, "gradient_accumulation_steps": 1, "deepspeed": "z.json"})
        now = {"world_size": 1, "gradient_accumulation_steps": 2, "deepspeed": "z.json"}
        with pytest.raises(FileExistsError, match=r"world_size was 2, now 1"):
            resume_point(tmp_path, None, False, now)
        assert resume_point(tmp_path, None, False, {**now, "world_size": 2, "gradient_accumulation_steps": 1}) == folder

    @pytest.mark.parametrize(("parts", "deepspeed"), [(0, None), (2, None), (None, "zero2.json")])
    def test_a_checkpoint_without_the_optimizers_state_is_refused(self, parts, deepspeed, tmp_path: Path):
        folder = make(tmp_path, 10, parts=parts or 0, complete=False)
        if parts == 0:  # save_only_model
            (folder / "optimizer.pt").unlink()
        mark_complete(folder)
        for wish in (None, "true", str(folder)):
            with pytest.raises(FileExistsError, match="the state of the optimizer: another engine"):
                resume_point(tmp_path, wish, False, {"deepspeed": deepspeed})

    @pytest.mark.parametrize("content", ["{", "[1]"])
    def test_a_damaged_recipe_is_named(self, content: str, tmp_path: Path):
        newest = make(tmp_path, 10)
        (tmp_path / ARGUMENTS).write_text(content)
        with pytest.raises(FileExistsError, match=r"arguments\.json is damaged, .*--resume_from_checkpoint true"):
            resume_point(tmp_path, None, False, {"lora_rank": 4})
        assert resume_point(tmp_path, "true", False, {"lora_rank": 4}) == newest

    def test_a_finished_run_is_not_overwritten_unasked(self, tmp_path: Path):
        make(tmp_path, 10)
        write_json(tmp_path / METRICS, {})
        with pytest.raises(FileExistsError, match=r"finished run.*--overwrite_output_dir true"):
            resume_point(tmp_path, None, False, {})
        assert resume_point(tmp_path, None, True, {}) is None

    def test_a_named_folder_must_be_complete(self, tmp_path: Path):
        complete = make(tmp_path, 10)
        cut_off = make(tmp_path, 20, complete=False)  # which does not hinder: it is never resumed from
        assert resume_point(tmp_path, str(complete), False, {}) == complete
        with pytest.raises(FileNotFoundError, match=rf"-20 is no complete checkpoint: .*cut off.*{complete}"):
            resume_point(tmp_path, str(cut_off), False, {})
        with pytest.raises(FileNotFoundError, match="no such folder"):
            resume_point(tmp_path, str(tmp_path / "elsewhere" / "checkpoint-1"), False, {})
        with pytest.raises(FileNotFoundError, match="no complete checkpoint in"):
            resume_point(tmp_path / "elsewhere", "true", False, {})

    def test_checkpoints_of_two_runs_never_stand_together(self, tmp_path: Path):
        first, second = make(tmp_path, 10), make(tmp_path, 20)
        elsewhere = make(tmp_path / "elsewhere", 5)
        for wish in ("false", str(first), str(elsewhere)):
            with pytest.raises(FileExistsError, match=r"holds checkpoint-20: .*--overwrite_output_dir true"):
                resume_point(tmp_path, wish, False, {})
        assert resume_point(tmp_path, "false", True, {}) is None
        assert resume_point(tmp_path, str(first), True, {}) == first
        assert resume_point(tmp_path, str(second), False, {}) == second
        assert resume_point(tmp_path / "new", "false", False, {}) is None


def test_clear_removes_a_run_and_what_comes_after_a_checkpoint(tmp_path: Path):
    for step in (5, 10, 20):
        make(tmp_path, step)
    kept = ["notes.txt", ADAPTER]
    for name in (METRICS, "trainer_state.json", "all_results.json", *kept):
        (tmp_path / name).write_text("mine")
    clear(tmp_path, start=tmp_path / "checkpoint-10")
    assert names(checkpoints(tmp_path)) == ["checkpoint-5", "checkpoint-10"]
    clear(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == kept


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter\nfailed"), SafetensorError("I/O")],
)
def test_an_error_of_saving_names_the_newest_complete_checkpoint(error: Exception, tmp_path: Path):
    def save() -> None:
        with as_save_error(tmp_path / "checkpoint-20"):
            raise error

    with pytest.raises(SaveError, match=r"20 could not be written: .*MiB are free\)\. There is no complete"):
        save()
    newest = make(tmp_path, 10)
    with pytest.raises(SaveError, match=rf"newest complete checkpoint is {newest}\.") as raised:
        save()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [KeyError("a bug"), RuntimeError("Connection closed by peer")])
def test_other_errors_while_saving_pass(error: Exception, tmp_path: Path):
    with pytest.raises(type(error)) as raised, as_save_error(tmp_path):
        raise error
    assert raised.value is error


class TestKeepCheckpoints:
    """Old checkpoints are removed once the new one is complete."""

    def save(self, output_dir: Path, step: int, limit: int | None, best: str | None = None, should_save: bool = True):
        make(output_dir, step, complete=False)
        args = SimpleNamespace(output_dir=str(output_dir), should_save=should_save)
        state = SimpleNamespace(global_step=step, best_model_checkpoint=best)
        KeepCheckpoints(limit).on_save(args, state, SimpleNamespace())

    def test_the_newest_is_complete_and_the_oldest_go(self, tmp_path: Path):
        make(tmp_path, 5, complete=False)
        for step in (10, 20, 30):
            self.save(tmp_path, step, limit=2)
        assert names(checkpoints(tmp_path)) == ["checkpoint-5", "checkpoint-20", "checkpoint-30"]
        assert latest_complete(tmp_path) == tmp_path / "checkpoint-30"

    def test_the_best_stays(self, tmp_path: Path):
        for step in (10, 20, 30):
            self.save(tmp_path, step, limit=1, best=str(tmp_path / "checkpoint-10"))
        assert names(checkpoints(tmp_path)) == ["checkpoint-10", "checkpoint-30"]

    @pytest.mark.parametrize("limit", [None, 0, -1])
    def test_without_limit_all_stay(self, limit: int | None, tmp_path: Path):
        for step in (10, 20, 30):
            self.save(tmp_path, step, limit=limit)
        assert len(checkpoints(tmp_path)) == 3

    def test_other_processes_only_wait(self, tmp_path: Path):
        self.save(tmp_path, 10, limit=1, should_save=False)
        assert not (tmp_path / "checkpoint-10" / COMPLETE).exists()


def test_one_run_at_a_time_in_a_folder(tmp_path: Path):
    with FileLock(tmp_path / ".lock"), pytest.raises(FileExistsError, match=rf"in use.*remove {tmp_path}/\.lock"):
        lock_run(tmp_path, seconds=0)
    with lock_run(tmp_path, seconds=0), lock_run(tmp_path, seconds=0):  # the same process may take it again
        assert (tmp_path / ".lock").is_file()
