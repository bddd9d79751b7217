"""Checkpoints: only a complete one is resumed from, and a save never removes the last good one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from loramoe.training.checkpoint import (
    ADAPTER,
    ARGUMENTS,
    COMPLETE,
    METRICS,
    as_save_error,
    checkpoints,
    clear,
    damage,
    latest_complete,
    lock_run,
    mark_complete,
    remove_oldest,
    resume_point,
)
from loramoe.utils import SaveError, write_json


def make(output_dir: Path, step: int, complete: bool = True, file: str = "optimizer.pt") -> Path:
    """A checkpoint with the state of an optimizer."""
    folder = output_dir / f"checkpoint-{step}"
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_text("the state of the optimizer")
    if complete:
        mark_complete(folder)
    return folder


def names(output_dir: Path) -> list[str]:
    return [folder.name for folder in checkpoints(output_dir)]


def test_checkpoints_are_ordered_by_step_and_nothing_else_is_one(tmp_path: Path):
    for step in (10, 9, 100):
        make(tmp_path, step)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert names(tmp_path) == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]


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


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_a_damaged_marker_is_none(tmp_path: Path, content: bytes):
    (make(tmp_path, 10) / COMPLETE).write_bytes(content)
    assert "cannot be read" in (damage(tmp_path / "checkpoint-10") or "")


def test_the_newest_complete_one_is_found_and_others_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    complete = make(tmp_path, 10)
    (make(tmp_path, 20) / "optimizer.pt").unlink()
    make(tmp_path, 30, complete=False)
    assert latest_complete(tmp_path) == complete
    assert [message.split()[0] for message in caplog.messages] == [
        str(tmp_path / name) for name in ("checkpoint-30", "checkpoint-20")
    ]


def test_an_interrupted_run_goes_on_if_its_recipe_is_the_same(tmp_path: Path):
    assert resume_point(tmp_path / "new", None, False, {}) is None
    newest = make(tmp_path, 10)
    write_json(tmp_path / ARGUMENTS, {"lora_rank": 4})
    assert resume_point(tmp_path, None, False, {"lora_rank": 4, "new_in_this_version": 1}) == newest
    assert resume_point(tmp_path, None, True, {"lora_rank": 4}) is None
    with pytest.raises(FileExistsError, match=r"lora_rank was 4, now 8"):
        resume_point(tmp_path, None, False, {"lora_rank": 8})
    (tmp_path / ARGUMENTS).write_text("{")
    with pytest.raises(FileExistsError, match=r"arguments\.json is damaged.*--resume_from_checkpoint true"):
        resume_point(tmp_path, None, False, {"lora_rank": 4})
    assert resume_point(tmp_path, "true", False, {"lora_rank": 8}) == newest


@pytest.mark.parametrize("deepspeed", [None, "z.json"])
def test_another_number_of_processes_goes_on_with_the_same_product_without_deepspeed(deepspeed, tmp_path: Path):
    newest = make(tmp_path, 10, file="global_step10/zero_0_optim_states.pt" if deepspeed else "optimizer.pt")
    recipe = {"world_size": 2, "gradient_accumulation_steps": 2, "deepspeed": deepspeed}
    write_json(tmp_path / ARGUMENTS, recipe)
    alike = {**recipe, "world_size": 1, "gradient_accumulation_steps": 4}
    assert resume_point(tmp_path, None, False, recipe) == newest
    if deepspeed:
        with pytest.raises(FileExistsError, match=r"world_size was 2, now 1"):
            resume_point(tmp_path, None, False, alike)
    else:
        assert resume_point(tmp_path, None, False, alike) == newest
    with pytest.raises(FileExistsError, match=r"world_size was 2, now 1"):
        resume_point(tmp_path, None, False, {**alike, "gradient_accumulation_steps": 2})


@pytest.mark.parametrize(
    ("file", "deepspeed"), [("adapter", None), ("global_step10/0_optim_states.pt", None), ("optimizer.pt", "z.json")]
)
def test_a_checkpoint_without_the_optimizers_state_is_refused(file: str, deepspeed: str | None, tmp_path: Path):
    folder = make(tmp_path, 10, file=file)
    for wanted in (None, "true", str(folder)):
        with pytest.raises(FileExistsError, match="the state of the optimizer: another engine"):
            resume_point(tmp_path, wanted, False, {"deepspeed": deepspeed})


def test_a_finished_run_is_not_overwritten_unasked(tmp_path: Path):
    make(tmp_path, 10)
    write_json(tmp_path / METRICS, {})
    with pytest.raises(FileExistsError, match=r"finished run.*--overwrite_output_dir true"):
        resume_point(tmp_path, None, False, {})
    assert resume_point(tmp_path, None, True, {}) is None


def test_a_named_folder_must_be_complete(tmp_path: Path):
    complete = make(tmp_path, 10)
    cut_off = make(tmp_path, 20, complete=False)  # which does not hinder: it is never resumed from
    assert resume_point(tmp_path, str(complete), False, {}) == complete
    with pytest.raises(FileNotFoundError, match=rf"-20 is no complete checkpoint: .*cut off.*{complete}"):
        resume_point(tmp_path, str(cut_off), False, {})
    with pytest.raises(FileNotFoundError, match="no complete checkpoint in"):
        resume_point(tmp_path / "elsewhere", "true", False, {})


def test_checkpoints_of_two_runs_never_stand_together(tmp_path: Path):
    first, second = make(tmp_path, 10), make(tmp_path, 20)
    for wanted in ("false", str(first), str(make(tmp_path / "elsewhere", 5))):
        with pytest.raises(FileExistsError, match=r"holds checkpoint-20: .*--overwrite_output_dir true"):
            resume_point(tmp_path, wanted, False, {})
    assert resume_point(tmp_path, "false", True, {}) is None
    assert resume_point(tmp_path, str(first), True, {}) == first
    assert resume_point(tmp_path, str(second), False, {}) == second


def test_clear_removes_a_run_and_what_comes_after_a_checkpoint(tmp_path: Path):
    for step in (5, 10, 20):
        make(tmp_path, step)
    kept = ["notes.txt", ADAPTER]
    for name in (METRICS, "trainer_state.json", "all_results.json", *kept):
        (tmp_path / name).write_text("mine")
    clear(tmp_path, start=tmp_path / "checkpoint-10")
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-10"]
    clear(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == kept


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter\nfailed"), SafetensorError("I/O")],
)
def test_an_error_of_saving_names_the_newest_complete_checkpoint(error: Exception, tmp_path: Path):
    left = r"20 could not be written: .*MiB are free\)\. There is no complete"
    with pytest.raises(SaveError, match=left), as_save_error(tmp_path / "checkpoint-20"):
        raise error
    left = rf"newest complete checkpoint is {make(tmp_path, 10)}\."
    with pytest.raises(SaveError, match=left) as raised, as_save_error(tmp_path / "checkpoint-20"):
        raise error
    assert "\n" not in str(raised.value)


def test_other_errors_while_saving_pass(tmp_path: Path):
    with pytest.raises(RuntimeError, match="Connection closed"), as_save_error(tmp_path):
        raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize(
    ("limit", "left"),
    [(2, ["5", "10", "30"]), (1, ["5", "10"]), (None, ["5", "10", "20", "30"]), (0, ["5", "10", "20", "30"])],
)
def test_the_oldest_go_but_for_the_best_and_the_incomplete(limit: int | None, left: list[str], tmp_path: Path):
    make(tmp_path, 5, complete=False)
    for step in (10, 20, 30):
        make(tmp_path, step)
    remove_oldest(tmp_path, limit, keep={"checkpoint-10"})
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


def test_one_run_at_a_time_in_a_folder(tmp_path: Path):
    with FileLock(tmp_path / ".lock"), pytest.raises(FileExistsError, match=rf"in use.*remove {tmp_path}/\.lock"):
        lock_run(tmp_path, seconds=0)
    with lock_run(tmp_path, seconds=0), lock_run(tmp_path, seconds=0):  # the same process may take it again
        assert (tmp_path / ".lock").is_file()
