"""Folders of a run: only what is whole is resumed from, and a save never destroys what was there."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from loramoe.training.checkpoints import (
    ADAPTER,
    ARGUMENTS,
    METRICS,
    KeepCheckpoints,
    as_save_error,
    check_new,
    checkpoints,
    clear,
    latest_complete,
    resume_point,
)
from loramoe.training.errors import SaveError
from loramoe.training.files import SEAL, seal, write_json


def make(output_dir: Path, step: int, complete: bool = True) -> Path:
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_text("the state of the optimizer")
    if complete:
        seal(folder)
    return folder


def test_checkpoints_are_ordered_by_step_and_nothing_else_is_one(tmp_path: Path):
    for step in (10, 9, 100):
        make(tmp_path, step)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert checkpoints(tmp_path / "none") == []


def test_broken_checkpoints_are_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole = make(tmp_path, 10)
    os.truncate(make(tmp_path, 20) / "optimizer.pt", 7)
    make(tmp_path, 30, complete=False)
    assert latest_complete(tmp_path) == whole
    cut_off, damaged = caplog.messages
    assert cut_off.endswith("checkpoint-30 is not complete, and left alone: it was cut off before its end")
    assert damaged.endswith("checkpoint-20 is not complete, and left alone: optimizer.pt has 7 bytes, 26 were written")


class TestResumePoint:
    """What a run starts from."""

    def test_a_new_folder_starts_at_the_beginning(self, tmp_path: Path):
        assert resume_point(tmp_path / "new", None, False, {}) is None

    def test_an_interrupted_run_goes_on(self, tmp_path: Path):
        newest = make(tmp_path, 10)
        write_json(tmp_path / ARGUMENTS, {"lora_rank": 4})
        assert resume_point(tmp_path, None, False, {"lora_rank": 4}) == newest
        assert resume_point(tmp_path, None, True, {"lora_rank": 4}) is None

    def test_an_interrupted_run_with_other_arguments_is_refused(self, tmp_path: Path):
        newest = make(tmp_path, 10)
        write_json(tmp_path / ARGUMENTS, {"lora_rank": 4})
        with pytest.raises(FileExistsError, match=r"lora_rank was 4, now 8. Set them back"):
            resume_point(tmp_path, None, False, {"lora_rank": 8})
        assert resume_point(tmp_path, "true", False, {"lora_rank": 8}) == newest

    def test_as_many_micro_batches_in_a_step_are_dealt_to_other_processes(self, tmp_path: Path):
        newest = make(tmp_path, 10)
        write_json(tmp_path / ARGUMENTS, {"world_size": 2, "gradient_accumulation_steps": 2, "deepspeed": None})
        alike = {"world_size": 1, "gradient_accumulation_steps": 4, "deepspeed": None}
        assert resume_point(tmp_path, None, False, alike) == newest
        with pytest.raises(FileExistsError, match=r"gradient_accumulation_steps was 2, now 1; world_size was 2, now 1"):
            resume_point(tmp_path, None, False, {**alike, "gradient_accumulation_steps": 1})
        with pytest.raises(
            FileExistsError, match=r"goes on as it was if world_size x gradient_accumulation_steps stays 4"
        ):
            resume_point(tmp_path, None, False, {**alike, "gradient_accumulation_steps": 2})
        with pytest.raises(FileExistsError, match=r"deepspeed was None, now 'zero2.json'"):
            resume_point(tmp_path, None, False, {**alike, "deepspeed": "zero2.json"})

    def test_the_shards_of_deepspeed_are_not_dealt_anew(self, tmp_path: Path):
        make(tmp_path, 10)
        write_json(tmp_path / ARGUMENTS, {"world_size": 2, "gradient_accumulation_steps": 1, "deepspeed": "z.json"})
        now = {"world_size": 1, "gradient_accumulation_steps": 2, "deepspeed": "z.json"}
        with pytest.raises(FileExistsError, match=r"with DeepSpeed it cannot, as each process has saved its own part"):
            resume_point(tmp_path, None, False, now)
        (tmp_path / "checkpoint-10" / "global_step10").mkdir()
        for rank in range(2):
            (tmp_path / "checkpoint-10" / "global_step10" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
        for wish in ("true", str(tmp_path / "checkpoint-10")):
            with pytest.raises(FileExistsError, match=r"state of 2 processes of DeepSpeed.* are 1\. Start as many"):
                resume_point(tmp_path, wish, False, now)
            assert resume_point(tmp_path, wish, False, {**now, "world_size": 2}) == tmp_path / "checkpoint-10"

    @pytest.mark.parametrize(("parts", "reason"), [(0, r"without it \(save_only_model\)"), (2, "by DeepSpeed")])
    def test_a_checkpoint_without_the_optimizers_state_is_refused(self, parts: int, reason: str, tmp_path: Path):
        folder = make(tmp_path, 10, complete=False)
        (folder / "optimizer.pt").unlink()
        for rank in range(parts):
            (folder / "global_step10").mkdir(exist_ok=True)
            (folder / "global_step10" / f"{rank}_optim_states.pt").touch()
        seal(folder)
        for wish in (None, "true", str(folder)):
            with pytest.raises(FileExistsError, match=rf"no optimizer\.pt, .*: it was saved {reason}\. Resume with"):
                resume_point(tmp_path, wish, False, {})
            assert resume_point(tmp_path, wish, False, {"fsdp": ["full_shard"]}) == folder

    @pytest.mark.parametrize("content", ["", "{", "[1]", "3"])
    def test_damaged_arguments_are_told(self, content: str, tmp_path: Path):
        newest = make(tmp_path, 10)
        (tmp_path / ARGUMENTS).write_text(content)
        with pytest.raises(FileExistsError, match=r"arguments\.json is damaged, .*Say --resume_from_checkpoint true"):
            resume_point(tmp_path, None, False, {"lora_rank": 4})
        assert resume_point(tmp_path, "true", False, {"lora_rank": 4}) == newest

    def test_a_finished_run_is_not_overwritten_unasked(self, tmp_path: Path):
        make(tmp_path, 10)
        write_json(tmp_path / METRICS, {})
        with pytest.raises(FileExistsError, match=r"holds a finished run. Set --overwrite_output_dir true"):
            resume_point(tmp_path, None, False, {})
        assert resume_point(tmp_path, None, True, {}) is None

    def test_a_wished_folder_must_be_complete(self, tmp_path: Path):
        make(tmp_path, 10)
        cut_off = make(tmp_path, 20, complete=False)  # which does not hinder: it is never resumed from
        assert resume_point(tmp_path, str(tmp_path / "checkpoint-10"), False, {}) == tmp_path / "checkpoint-10"
        with pytest.raises(
            FileNotFoundError, match=r"-20 is no complete checkpoint: it was cut off.*Complete ones.*-10"
        ):
            resume_point(tmp_path, str(cut_off), False, {})
        with pytest.raises(FileNotFoundError, match="There is no complete one beside it either"):
            resume_point(tmp_path, str(tmp_path / "elsewhere" / "checkpoint-1"), False, {})

    def test_checkpoints_of_two_runs_never_stand_together(self, tmp_path: Path):
        first, _ = make(tmp_path, 10), make(tmp_path, 20)
        elsewhere = make(tmp_path / "elsewhere", 5)
        for wish, left in (
            ("false", "checkpoint-10, checkpoint-20"),
            (str(first), "checkpoint-20"),
            (str(elsewhere), ""),
        ):
            with pytest.raises(
                FileExistsError, match=rf"holds .*{left}, from .*Set --overwrite_output_dir true to remove"
            ):
                resume_point(tmp_path, wish, False, {})
        assert resume_point(tmp_path, "false", True, {}) is None
        assert resume_point(tmp_path, str(first), True, {}) == first
        assert resume_point(tmp_path, str(tmp_path / "checkpoint-20"), False, {}) == tmp_path / "checkpoint-20"
        assert resume_point(tmp_path / "new", "false", False, {}) is None

    def test_true_needs_a_checkpoint(self, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match="no complete checkpoint in"):
            resume_point(tmp_path, "true", False, {})


def test_clear_removes_a_run_and_nothing_else(tmp_path: Path):
    make(tmp_path, 10)
    write_json(tmp_path / METRICS, {})
    kept = ["notes.txt", ADAPTER]
    for name in ("expert_shares.png", "expert_shares.json", "trainer_state.json", "all_results.json", *kept):
        (tmp_path / name).write_text("mine")
    clear(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == kept


def test_clear_keeps_the_way_to_a_checkpoint(tmp_path: Path):
    for step in (5, 10, 20):
        make(tmp_path, step)
    clear(tmp_path, start=tmp_path / "checkpoint-10")
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10"]


def test_a_folder_that_was_filled_meanwhile_is_refused(tmp_path: Path):
    check_new(tmp_path)
    write_json(tmp_path / METRICS, {})
    with pytest.raises(
        FileExistsError, match=r"another run has filled .* just now\. Start again, to go on from what it"
    ):
        check_new(tmp_path)


class TestSaveErrors:
    """What cannot be written is told with what is left."""

    @pytest.mark.parametrize(
        "error",
        [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter\nfailed"), SafetensorError("I/O")],
    )
    def test_the_newest_complete_checkpoint_is_named(self, error: Exception, tmp_path: Path):
        def save() -> None:
            with as_save_error(tmp_path / "checkpoint-20"):
                raise error

        with pytest.raises(
            SaveError, match=r"20 could not be written: .*MiB are free\)\. There is no complete checkpoint yet"
        ):
            save()
        newest = make(tmp_path, 10)
        with pytest.raises(
            SaveError, match=rf"The newest complete checkpoint is {newest}\. Make room, and start the same"
        ) as e:
            save()
        assert "\n" not in str(e.value)

    def test_a_bug_stays_one(self, tmp_path: Path):
        with pytest.raises(KeyError), as_save_error(tmp_path):
            raise KeyError("a bug")
        with pytest.raises(RuntimeError, match="Connection closed by peer"), as_save_error(tmp_path):
            raise RuntimeError("Connection closed by peer")


class TestKeepCheckpoints:
    """Old checkpoints go once the new one is complete."""

    def save(self, output_dir: Path, step: int, limit: int | None, best: str | None = None, should_save: bool = True):
        make(output_dir, step, complete=False)
        args = SimpleNamespace(output_dir=str(output_dir), should_save=should_save)
        state = SimpleNamespace(global_step=step, best_model_checkpoint=best)
        KeepCheckpoints(limit).on_save(args, state, SimpleNamespace())

    def test_the_newest_is_complete_and_the_oldest_go(self, tmp_path: Path):
        make(tmp_path, 5, complete=False)
        for step in (10, 20, 30):
            self.save(tmp_path, step, limit=2)
        assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-20", "checkpoint-30"]
        assert latest_complete(tmp_path) == tmp_path / "checkpoint-30"

    def test_the_best_stays(self, tmp_path: Path):
        for step in (10, 20, 30):
            self.save(tmp_path, step, limit=1, best=str(tmp_path / "checkpoint-10"))
        assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-30"]

    @pytest.mark.parametrize("limit", [None, 0, -1])
    def test_without_limit_all_stay(self, limit: int | None, tmp_path: Path):
        for step in (10, 20, 30):
            self.save(tmp_path, step, limit=limit)
        assert len(checkpoints(tmp_path)) == 3

    def test_other_processes_only_wait(self, tmp_path: Path):
        self.save(tmp_path, 10, limit=1, should_save=False)
        assert not (tmp_path / "checkpoint-10" / SEAL).exists()
