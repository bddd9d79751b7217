"""Folders of a run: what is whole, what to resume from, and how a save never destroys what was saved before.

output_dir/arguments.json          what the run was started with
output_dir/checkpoint-N/           state of the Trainer, and sft_lora_model/, the adapter
output_dir/checkpoint-N/complete   written last: a checkpoint without it was cut off, and is not resumed from
output_dir/sft_lora_model/         the trained adapter
output_dir/metrics.json            written last of all: the run has finished
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

ADAPTER = "sft_lora_model"  # name of the adapter, and so of its folder, as in the original release
ARGUMENTS = "arguments.json"
COMPLETE = "complete"
METRICS = "metrics.json"
FIGURE, SHARES = "expert_shares.png", "expert_shares.json"
# What else a finished run leaves beside its adapter; arguments.json is written anew, curves in runs/ have dates.
_LEFT = (FIGURE, SHARES, "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, complete or not, oldest first."""
    if not output_dir.is_dir():
        return []
    steps = {folder: _CHECKPOINT.fullmatch(folder.name) for folder in output_dir.iterdir() if folder.is_dir()}
    return sorted((f for f, step in steps.items() if step), key=lambda folder: int(folder.name.split("-")[1]))


def latest_complete(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end; others are named in a warning."""
    found = checkpoints(output_dir)
    cut_off = [folder.name for folder in found if not (folder / COMPLETE).is_file()]
    if cut_off:
        logger.warning("%s: not complete, and left alone: %s", output_dir, ", ".join(cut_off))
    complete = [folder for folder in found if (folder / COMPLETE).is_file()]
    return complete[-1] if complete else None


def resume_point(output_dir: Path, wish: str | None, overwrite: bool, arguments: dict[str, Any]) -> Path | None:
    """Decides what a run starts from.

    Args:
        output_dir: Folder of the run.
        wish: Value of --resume_from_checkpoint: a folder, "true", "false" or None.
        overwrite: Value of --overwrite_output_dir.
        arguments: What shapes the trajectory of the run, by flag; compared with the earlier run's.

    Returns:
        The checkpoint to resume from, or None to start at the beginning.

    Raises:
        FileNotFoundError: If there is no complete checkpoint where one was wished for.
        FileExistsError: If the folder holds a finished run, an interrupted one with other arguments, or checkpoints
            that a later start would take for this run's.
    """
    if wish is not None and wish.lower() == "true":
        return _wished_latest(output_dir)
    start = None if wish is None or wish.lower() == "false" else _wished(Path(wish))
    if overwrite:
        return start
    if start is None and (output_dir / METRICS).is_file():
        raise FileExistsError(
            f"{output_dir} holds a finished run. Set --overwrite_output_dir true to replace it, "
            "or another --output_dir."
        )
    if wish is not None:
        _check_none_left(output_dir, start)
        return start
    latest = latest_complete(output_dir)
    if latest is not None:
        _check_same(output_dir, arguments)
    return latest


def _wished_latest(output_dir: Path) -> Path:
    latest = latest_complete(output_dir)
    if latest is None:
        raise FileNotFoundError(
            f"no complete checkpoint in {output_dir}. Leave --resume_from_checkpoint out to start anew."
        )
    return latest


def _wished(folder: Path) -> Path:
    if (folder / COMPLETE).is_file():
        return folder
    complete = [str(found) for found in checkpoints(folder.parent) if (found / COMPLETE).is_file()]
    hint = (
        f"Complete ones beside it: {', '.join(complete)}." if complete else "There is no complete one beside it either."
    )
    raise FileNotFoundError(f"{folder} is no complete checkpoint. {hint}")


def _not_before(output_dir: Path, start: Path | None) -> list[Path]:
    """The checkpoints of output_dir that do not lie on the way to `start`: newer ones, or all."""
    found = checkpoints(output_dir)
    same = [place for place, folder in enumerate(found) if start is not None and folder.resolve() == start.resolve()]
    return found[same[0] + 1 :] if same else found


def _check_none_left(output_dir: Path, start: Path | None) -> None:
    left = [folder.name for folder in _not_before(output_dir, start) if (folder / COMPLETE).is_file()]
    if left:
        raise FileExistsError(
            f"{output_dir} holds {', '.join(left)}, from which a later start would resume, and not from what this run "
            f"makes of {start or 'a new adapter'}. Set --overwrite_output_dir true to remove them, or another "
            "--output_dir."
        )


def _check_same(output_dir: Path, arguments: dict[str, Any]) -> None:
    file = output_dir / ARGUMENTS
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    changed = [
        f"{k} was {v!r}, now {arguments[k]!r}" for k, v in earlier.items() if k in arguments and arguments[k] != v
    ]
    if changed:
        raise FileExistsError(
            f"{output_dir} holds an interrupted run with other arguments: {'; '.join(changed)}. "
            "Set them back to resume it, --resume_from_checkpoint true to resume it with these, "
            "or --overwrite_output_dir true to start anew."
        )


def clear(output_dir: Path, start: Path | None = None) -> None:
    """Removes what an earlier run left, so that none of it is taken for this one's.

    Its adapter stays until this run's replaces it.

    Args:
        output_dir: Folder of the run; files that no run of ours writes stay.
        start: The checkpoint to resume from; it and the older ones beside it stay.
    """
    (output_dir / METRICS).unlink(missing_ok=True)  # first: a run half removed must not look finished
    for name in _LEFT:
        (output_dir / name).unlink(missing_ok=True)
    for folder in _not_before(output_dir, start):
        (folder / COMPLETE).unlink(missing_ok=True)  # first here too: what is half removed must not look complete
        shutil.rmtree(folder)


def write_json(file: Path, values: Any) -> None:
    """Writes JSON so that the file holds all of it or, after a power cut, what it held before."""
    draft = file.with_name(f".{file.name}.incomplete")
    draft.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sync(draft)
    os.replace(draft, file)
    sync(file.parent)


@contextlib.contextmanager
def filled_then_moved(folder: Path, writer: bool) -> Iterator[Path]:
    """Fills a hidden folder and moves its entries into place once they are whole and on disk.

    Args:
        folder: Where the entries go; entries of other names stay.
        writer: Whether this process is the one that writes; the others only take part in what saving gathers.

    Yields:
        The hidden folder, of the same name in all processes.
    """
    draft = folder / ".incomplete"
    if writer:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    try:
        yield draft
    except BaseException:
        if writer:
            shutil.rmtree(draft, ignore_errors=True)
        raise
    if not writer:
        return
    sync_all(draft)
    for entry in list(draft.iterdir()):
        _replace(entry, folder / entry.name)
    draft.rmdir()
    sync(folder)


def _replace(new: Path, target: Path) -> None:
    if target.is_dir():  # a folder cannot be replaced in one step: the old one steps aside first
        aside = target.with_name(f".{target.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(target, aside)
        os.replace(new, target)
        shutil.rmtree(aside)
    else:
        os.replace(new, target)


def sync(path: Path) -> None:
    """Has the operating system write a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """`sync` of everything below a folder, and of the folder."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


class KeepCheckpoints(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Marks a checkpoint complete once every process has written its part, and only then removes the oldest.

    The Trainer itself removes old checkpoints before all processes have written the new one; a crash in between would
    leave none. So its `save_total_limit` is taken over here.

    Args:
        limit: Most checkpoints to keep, None for all. The best one, and the newest, always stay.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Runs in every process after a checkpoint was written."""
        PartialState().wait_for_everyone()
        if not args.should_save:
            return
        output_dir = Path(args.output_dir)
        newest = output_dir / f"checkpoint-{state.global_step}"
        sync_all(newest)
        (newest / COMPLETE).touch()
        sync(newest)
        if self.limit is not None:
            self._remove_oldest(output_dir, keep={newest.name, Path(state.best_model_checkpoint or "").name})

    def _remove_oldest(self, output_dir: Path, keep: set[str]) -> None:
        assert self.limit is not None
        complete = [folder for folder in checkpoints(output_dir) if (folder / COMPLETE).is_file()]
        surplus = max(0, len(complete) - max(1, self.limit))
        for folder in [f for f in complete if f.name not in keep][:surplus]:
            (folder / COMPLETE).unlink()  # first: what is half removed must not look complete
            shutil.rmtree(folder)
