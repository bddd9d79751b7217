"""Folders of a run: what is whole, what to resume from, and what may be removed.

output_dir/arguments.json          what the run was started with
output_dir/checkpoint-N/           state of the Trainer, and sft_lora_model/, the adapter
output_dir/checkpoint-N/complete   written last, with size and hash of every file of the checkpoint: one without it was
                                   cut off, one that does not agree with it was damaged; neither is resumed from
output_dir/sft_lora_model/         the trained adapter
output_dir/expert_shares.*         which expert served which task type in the last evaluation
output_dir/metrics.json            written last of all that makes a run: it has finished
output_dir/report/                 the page on the experts, made after that
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loramoe.data.disk import sync
from loramoe.training.errors import SaveError
from loramoe.training.files import SEAL, damage, seal

logger = logging.getLogger(__name__)

ADAPTER = "sft_lora_model"  # name of the adapter, and so of its folder, as in the original release
ARGUMENTS = "arguments.json"
METRICS = "metrics.json"
OPTIMIZER = "optimizer.pt"  # as the Trainer names it
FIGURE, SHARES = "expert_shares.png", "expert_shares.json"
PAGES = "report"  # folder of the page about the experts
# What else a finished run leaves beside its adapter; arguments.json is written anew, curves in runs/ have dates.
_LEFT = (FIGURE, SHARES, "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")
# Who computes the micro-batches of a step: so many processes, each so many one after the other.
DEALING = ("world_size", "gradient_accumulation_steps")
_DEALING_HINT = (
    " With another number of processes a run goes on as it was if world_size x gradient_accumulation_steps stays "
    "{product}; with DeepSpeed it cannot, as each process has saved its own part of the optimizer's state."
)
# By which torch's errors of writing are known: they have no class of their own.
_WRITER_OF_TORCH = ("PytorchStreamWriter", "inline_container", "unexpected pos", "iostream error")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, complete or not, oldest first."""
    if not output_dir.is_dir():
        return []
    steps = {folder: _CHECKPOINT.fullmatch(folder.name) for folder in output_dir.iterdir() if folder.is_dir()}
    return sorted((f for f, step in steps.items() if step), key=lambda folder: int(folder.name.split("-")[1]))


def latest_complete(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end and is still whole; newer ones that are not are named."""
    for folder in reversed(checkpoints(output_dir)):
        fault = damage(folder)
        if fault is None:
            return folder
        logger.warning("%s is not complete, and left alone: %s", folder, fault)
    return None


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
    start = _start(output_dir, wish, overwrite, arguments)
    if start is not None:
        _check_state(start, arguments)
    return start


def _start(output_dir: Path, wish: str | None, overwrite: bool, arguments: dict[str, Any]) -> Path | None:
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
    fault = damage(folder) if folder.is_dir() else "there is no such folder"
    if fault is None:
        return folder
    complete = [str(found) for found in checkpoints(folder.parent) if damage(found) is None]
    hint = (
        f"Complete ones beside it: {', '.join(complete)}." if complete else "There is no complete one beside it either."
    )
    raise FileNotFoundError(f"{folder} is no complete checkpoint: {fault}. {hint}")


def _not_before(output_dir: Path, start: Path | None) -> list[Path]:
    """The checkpoints of output_dir that do not lie on the way to `start`: newer ones, or all."""
    found = checkpoints(output_dir)
    same = [place for place, folder in enumerate(found) if start is not None and folder.resolve() == start.resolve()]
    return found[same[0] + 1 :] if same else found


def _check_none_left(output_dir: Path, start: Path | None) -> None:
    left = [folder.name for folder in _not_before(output_dir, start) if (folder / SEAL).is_file()]
    if left:
        raise FileExistsError(
            f"{output_dir} holds {', '.join(left)}, from which a later start would resume, and not from what this run "
            f"makes of {start or 'a new adapter'}. Set --overwrite_output_dir true to remove them, or another "
            "--output_dir."
        )


def _check_same(output_dir: Path, arguments: dict[str, Any]) -> None:
    earlier = _arguments_of(output_dir)
    changed = {name: value for name, value in earlier.items() if arguments.get(name, value) != value}
    if not changed or (changed.keys() <= set(DEALING) and _dealt_alike(earlier, arguments)):
        return
    told = "; ".join(f"{name} was {value!r}, now {arguments[name]!r}" for name, value in changed.items())
    raise FileExistsError(
        f"{output_dir} holds an interrupted run with other arguments: {told}. Set them back to resume it, "
        "--resume_from_checkpoint true to resume it with these, or --overwrite_output_dir true to start anew."
        + (_DEALING_HINT.format(product=_product(earlier)) if "world_size" in changed else "")
    )


def check_new(output_dir: Path) -> None:
    """Refuses a folder that was not there when its run was planned, and has been filled meanwhile.

    Args:
        output_dir: Folder of the run.

    Raises:
        FileExistsError: If another run has left checkpoints or results in it.
    """
    if checkpoints(output_dir) or (output_dir / METRICS).is_file():
        raise FileExistsError(f"another run has filled {output_dir} just now. Start again, to go on from what it left.")


def _arguments_of(output_dir: Path) -> dict[str, Any]:
    file = output_dir / ARGUMENTS
    if not file.is_file():
        return {}
    try:
        return {**json.loads(file.read_text(encoding="utf-8"))}
    except (ValueError, TypeError) as error:
        raise FileExistsError(
            f"{file} is damaged, so that nobody knows what the interrupted run was started with. Say "
            "--resume_from_checkpoint true to resume it as you start it now, or --overwrite_output_dir true to start "
            "anew."
        ) from error


def _check_state(start: Path, arguments: dict[str, Any]) -> None:
    """Refuses a checkpoint without the state of this engine's optimizer: the Trainer would silently begin anew."""
    parts = len(list(start.glob("global_step*/*_optim_states.pt")))
    hint = f"Or take the adapter alone, by --peft_path {start / ADAPTER} and another --output_dir."
    if arguments.get("deepspeed") and parts != arguments.get("world_size"):
        raise FileExistsError(
            f"{start} has the optimizer's state of {parts} processes of DeepSpeed, each with its own part, and there "
            f"are {arguments.get('world_size')}. Start as many, with the same engine. {hint}"
        )
    if not arguments.get("deepspeed") and not arguments.get("fsdp") and not (start / OPTIMIZER).is_file():
        engine = "was saved by DeepSpeed" if parts else "was saved without it (save_only_model)"
        raise FileExistsError(
            f"{start} has no {OPTIMIZER}, the state of the optimizer: it {engine}. Resume with the same engine. {hint}"
        )


def _dealt_alike(earlier: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether each step takes the same micro-batches, though they are dealt to other processes."""
    return _product(earlier) == _product(now) and not (earlier.get("deepspeed") or now.get("deepspeed"))


def _product(arguments: dict[str, Any]) -> int:
    return math.prod(int(arguments.get(name, 1)) for name in DEALING)


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
        remove_checkpoint(folder)


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint, its seal first: what is half removed must not look complete."""
    (folder / SEAL).unlink(missing_ok=True)
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_save_error(folder: Path) -> Iterator[None]:
    """Says what is left, and how to go on, where a checkpoint cannot be written.

    Args:
        folder: The checkpoint.

    Raises:
        SaveError: In place of what writing raised. For a full disk torch and safetensors have errors of their own.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _WRITER_OF_TORCH):
            raise  # another process has died, or there is a bug: neither is told by the room on the disk
        free = shutil.disk_usage(folder.parent).free / 2**20
        latest = latest_complete(folder.parent)
        left = f"The newest complete checkpoint is {latest}" if latest else "There is no complete checkpoint yet"
        raise SaveError(
            f"{folder} could not be written: {' '.join(str(error).split())} ({free:,.0f} MiB are free). {left}. Make "
            "room, and start the same command again to go on."
        ) from error


class KeepCheckpoints(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Seals a checkpoint once every process has written its part, and only then removes the oldest.

    The Trainer itself removes old checkpoints before all processes have written the new one; a crash in between would
    leave none. So its `save_total_limit` is taken over here.

    Args:
        limit: Most checkpoints to keep; None, or less than 1, for all. The best one, and the newest, always stay.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit if limit is not None and limit > 0 else None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Runs in every process after a checkpoint was written."""
        everyone = PartialState()
        everyone.wait_for_everyone()
        if args.should_save:
            with as_save_error(Path(args.output_dir) / f"checkpoint-{state.global_step}"):
                self._seal(Path(args.output_dir), state)
        everyone.wait_for_everyone()  # a process that ended now would have the launcher stop the one that seals

    def _seal(self, output_dir: Path, state: TrainerState) -> None:
        newest = output_dir / f"checkpoint-{state.global_step}"
        seal(newest)
        sync(output_dir)
        if self.limit is not None:
            self._remove_oldest(output_dir, keep={newest.name, Path(state.best_model_checkpoint or "").name})

    def _remove_oldest(self, output_dir: Path, keep: set[str]) -> None:
        assert self.limit is not None
        complete = [folder for folder in checkpoints(output_dir) if (folder / SEAL).is_file()]
        surplus = max(0, len(complete) - self.limit)
        for folder in [f for f in complete if f.name not in keep][:surplus]:
            remove_checkpoint(folder)
