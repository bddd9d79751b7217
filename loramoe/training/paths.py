"""A run writes below its output_dir: a flag file or DeepSpeed file from elsewhere cannot make it write to other places.

Checked is every path that flags and the DeepSpeed file can name and something then writes to. Exempt are:
- what the environment names (TENSORBOARD_LOGGING_DIR, WANDB_DIR, HF_DATASETS_CACHE, HF_HOME …), and where a tracker
  puts its own files: that is up to whoever starts the run, not to a file that they were given;
- `nvme_path` of DeepSpeed: scratch space on a local disk, which has to be elsewhere to be of use;
- what is only read: models, data, adapters, checkpoints to resume from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from loramoe.training.errors import UsageError

_SCRATCH = ("nvme_path",)
_PATHS = ("_path", "_dir", "_file")  # how DeepSpeed's names of paths end
_MONITORS = ("tensorboard", "csv_monitor")  # write to output_path/job_name, by default below the working directory


def check_paths(args: TrainingArguments) -> None:
    """Checks that all that a run is told to write lies below its output_dir. Links are followed.

    Args:
        args: The training's arguments, made: what they name as `deepspeed` has been read.

    Raises:
        UsageError: If a path lies outside, or cannot be told.
    """
    named = [("logging_dir", vars(args).get("logging_dir"))]  # no flag any more in transformers 5
    if args.deepspeed:
        named += _of_deepspeed(args.hf_deepspeed_config.config)
    root = _resolved("output_dir", args.output_dir)
    for name, path in named:
        if path is not None and not _resolved(name, path).is_relative_to(root):
            raise UsageError(
                f"{name}={path} lies outside output_dir={args.output_dir} (it is {_resolved(name, path)}). Name a "
                "place below output_dir, or leave it out."
            )


def _of_deepspeed(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of the paths in a DeepSpeed configuration."""
    for monitor in _MONITORS:
        section = config.get(monitor)
        if isinstance(section, Mapping) and section.get("enabled"):
            job = str(section.get("job_name", "DeepSpeedJobName"))
            yield f"deepspeed: {monitor}.output_path", str(Path(str(section.get("output_path", "")), job))
    yield from _by_name(config, "deepspeed: ")


def _by_name(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _by_name(value, f"{prefix}{key}.")
        elif isinstance(value, str) and value and key.endswith(_PATHS) and key not in _SCRATCH:
            yield f"{prefix}{key}", value


def _resolved(name: str, path: str) -> Path:
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a circle of links, a zero byte
        raise UsageError(f"{name}={path!r} is no path that can be written to ({error}). Correct it.") from error
