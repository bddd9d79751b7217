"""Checkpoints of a run: which are complete, which one to resume from, and which may be removed.

output_dir/arguments.json          the recipe: what shapes the run
output_dir/checkpoint-N/           state of the Trainer, and sft_lora_model/, the adapter
output_dir/checkpoint-N/complete   the marker, written last, with the size of every file; without it, a save was cut off
output_dir/sft_lora_model/         the trained adapter
output_dir/metrics.json            written last of all: the run has finished
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
from typing import Any, Final

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from loramoe.utils import SaveError, sync, sync_all, write_json

logger = logging.getLogger(__name__)

ADAPTER: Final = "sft_lora_model"  # name of the adapter, and so of its folder, as in the original release
ARGUMENTS: Final = "arguments.json"
COMPLETE: Final = "complete"
LOCK: Final = ".lock"
METRICS: Final = "metrics.json"
PAGES: Final = "report"  # folder of the report on the experts
# Removed when a run starts anew. METRICS comes first: a run that is half removed must not look finished.
RESULTS: Final = (METRICS, "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")
# torch's writer raises RuntimeError for a full disk; these words name it.
_TORCH_WRITER = ("PytorchStreamWriter", "inline_container", "unexpected pos", "iostream error")


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, complete or not, oldest first."""
    found = [f for f in output_dir.glob("checkpoint-*") if f.is_dir() and re.fullmatch(r"checkpoint-\d+", f.name)]
    return sorted(found, key=lambda folder: int(folder.name[11:]))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, such as "optimizer.pt is missing"; None if it is complete."""
    try:
        sizes = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        for name, size in sizes.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (found := (folder / name).stat().st_size) != size:
                return f"{name} has {found:,} bytes, {size:,} were written"
    except FileNotFoundError:
        return "it was cut off before its end" if folder.is_dir() else "there is no such folder"
    except (OSError, ValueError, TypeError, AttributeError):
        return f"its file {COMPLETE} cannot be read"
    return None


def mark_complete(folder: Path) -> None:
    """Forces a checkpoint to disk and writes its marker; no process may write to it afterwards."""
    sync_all(folder)
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".incomplete"))
    write_json(folder / COMPLETE, {str(f.relative_to(folder)): f.stat().st_size for f in files if f.name != COMPLETE})
    sync(folder.parent)


def latest_complete(output_dir: Path) -> Path | None:
    """The newest complete checkpoint; newer ones that are not complete are named in a warning."""
    for folder in reversed(checkpoints(output_dir)):
        fault = damage(folder)
        if fault is None:
            return folder
        logger.warning("%s is not complete, and left alone: %s", folder, fault)
    return None


def resume_point(output_dir: Path, requested: str | None, overwrite: bool, recipe: dict[str, Any]) -> Path | None:
    """Decides where a run starts: at a complete checkpoint, or at the beginning (None).

    `requested` is `--resume_from_checkpoint`: a checkpoint; "true", the newest, whatever the recipe; "false", none; or
    None, the newest if the recipe is the same.

    Raises:
        FileExistsError: If output_dir holds a finished run, another interrupted one, or newer checkpoints.
        FileNotFoundError: If the requested checkpoint is not complete.
    """
    wanted = (requested or "").lower()
    start = None if wanted in ("", "false", "true") else Path(str(requested))
    fault = None if start is None else damage(start)
    if start is not None and fault is not None:
        newest = latest_complete(start.parent) or "none"
        raise FileNotFoundError(f"{start} is no complete checkpoint: {fault}. The newest complete one there: {newest}.")
    if wanted == "true":
        start = latest_complete(output_dir)
        if start is None:
            raise FileNotFoundError(f"no complete checkpoint in {output_dir}. Leave --resume_from_checkpoint out.")
    if not overwrite and start is None and (output_dir / METRICS).is_file():
        raise FileExistsError(
            f"{output_dir} holds a finished run. Set --overwrite_output_dir true, or another --output_dir."
        )
    latest = None if overwrite or wanted == "true" else latest_complete(output_dir)
    if latest is not None and wanted == "":
        start = latest
        _check_recipe(output_dir, recipe)
    elif latest is not None and (start is None or latest.resolve() != start.resolve()):
        raise FileExistsError(
            f"{output_dir} holds {latest.name}: a later start would resume from there, not from what this run makes of "
            f"{start or 'a new adapter'}. Set --overwrite_output_dir true, or another --output_dir."
        )
    state = "global_step*/*_optim_states.pt" if recipe.get("deepspeed") else "optimizer*"
    if start is not None and not any(start.glob(state)):  # the Trainer would silently start with a new one
        raise FileExistsError(
            f"{start} has no {state}, the state of the optimizer: another engine or save_only_model made it. Resume "
            f"with the same engine, or start from its adapter: --adapter {start / ADAPTER} and another --output_dir."
        )
    return start


def _check_recipe(output_dir: Path, recipe: dict[str, Any]) -> None:
    file = output_dir / ARGUMENTS
    try:
        earlier = {**json.loads(file.read_text(encoding="utf-8"))} if file.is_file() else {}
    except (ValueError, TypeError) as error:
        raise FileExistsError(
            f"{file} is damaged: the interrupted run cannot be compared with this one. Set --resume_from_checkpoint "
            "true to resume it, or --overwrite_output_dir true to start anew."
        ) from error
    changed = {name: value for name, value in earlier.items() if recipe.get(name, value) != value}
    product = ("world_size", "gradient_accumulation_steps")  # of which a step has the micro-batches
    same_step = math.prod(earlier.get(n, 1) for n in product) == math.prod(recipe.get(n, 1) for n in product)
    if same_step and not recipe.get("deepspeed"):  # of which each process has saved its own part
        changed = {name: value for name, value in changed.items() if name not in product}
    if changed:
        changes = "; ".join(f"{name} was {value!r}, now {recipe[name]!r}" for name, value in changed.items())
        raise FileExistsError(
            f"{output_dir} holds an interrupted run with other arguments: {changes}. Set them back to resume it, "
            "--resume_from_checkpoint true to resume it with these, or --overwrite_output_dir true to start anew."
        )


def clear(output_dir: Path, start: Path | None = None) -> None:
    """Removes what an earlier run left, but for its adapter, and checkpoints up to `start`, from which to resume."""
    for name in RESULTS:
        (output_dir / name).unlink(missing_ok=True)
    found = checkpoints(output_dir)
    places = [place for place, folder in enumerate(found) if start is not None and folder.samefile(start)]
    for folder in found[places[0] + 1 if places else 0 :]:
        remove_checkpoint(folder)


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint, its marker first: what is half removed must not look complete."""
    (folder / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def remove_oldest(output_dir: Path, limit: int | None, keep: set[str]) -> None:
    """Removes the oldest complete checkpoints beyond a limit (None, or less than 1: none), but for those to keep."""
    complete = [folder for folder in checkpoints(output_dir) if (folder / COMPLETE).is_file()]
    surplus = len(complete) - limit if limit is not None and limit > 0 else 0
    for folder in [folder for folder in complete if folder.name not in keep][: max(0, surplus)]:
        remove_checkpoint(folder)


@contextlib.contextmanager
def as_save_error(folder: Path) -> Iterator[None]:
    """Turns errors of writing a checkpoint into SaveError, which names the newest complete one and the free space."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _TORCH_WRITER):
            raise  # another process has died, or there is a bug
        free = shutil.disk_usage(folder.parent).free / 2**20
        latest = latest_complete(folder.parent)
        left = f"The newest complete checkpoint is {latest}" if latest else "There is no complete checkpoint yet"
        raise SaveError(
            f"{folder} could not be written: {' '.join(str(error).split())} ({free:,.0f} MiB are free). {left}. Make "
            "room, and start the same command again to go on."
        ) from error


def lock_run(output_dir: Path, seconds: float = 10.0) -> contextlib.AbstractContextManager[Any]:
    """Locks the folder of a run, and creates it; the system releases the lock of a process that dies."""
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(output_dir / LOCK, is_singleton=True).acquire(timeout=seconds)
    except Timeout:
        raise FileExistsError(
            f"{output_dir} is in use by another run. Wait for its end or stop it, or set another --output_dir. If "
            f"there is none, and a machine has crashed, remove {output_dir / LOCK}."
        ) from None
