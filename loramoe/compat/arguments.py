"""Where the supported versions of transformers disagree about training arguments."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from transformers import TrainingArguments

FIELDS = {f.name for f in dataclasses.fields(TrainingArguments)}


def set_warmup(args: Any) -> None:
    """Makes warmup_ratio mean the same everywhere: 5.x has no such field, and reads warmup_steps below 1 as a ratio.

    Raises:
        ValueError: If warmup_ratio is outside [0, 1).
    """
    if not 0 <= args.warmup_ratio < 1:
        raise ValueError(
            f"warmup_ratio must be in [0, 1); got {args.warmup_ratio}. For a number of steps set warmup_steps."
        )
    if args.warmup_steps:
        args.warmup_ratio = 0.0
    elif "warmup_ratio" not in FIELDS:
        args.warmup_steps = args.warmup_ratio


def set_checkpointing(args: Any) -> None:
    """Makes gradient checkpointing mean the same everywhere: 5.x renames its flags, 4.x has use_reentrant=True."""
    name = "activation_checkpointing" if "activation_checkpointing" in FIELDS else "gradient_checkpointing"
    enabled = getattr(args, name) or args.gradient_checkpointing
    options = getattr(args, f"{name}_kwargs") or args.gradient_checkpointing_kwargs or {}
    options = json.loads(options) if isinstance(options, str) else options
    args.gradient_checkpointing = args.gradient_checkpointing_kwargs = None  # where they are the older names, they warn
    setattr(args, name, bool(enabled))
    setattr(args, f"{name}_kwargs", {"use_reentrant": False, **options})


def set_grouping(args: Any) -> None:
    """Makes group_by_length mean the same everywhere: in 5.x it is a value of train_sampling_strategy.

    Raises:
        ValueError: If train_sampling_strategy says otherwise.
    """
    if not args.group_by_length or "train_sampling_strategy" not in FIELDS:
        return
    if args.train_sampling_strategy not in ("random", "group_by_length"):
        raise ValueError(
            f"group_by_length and train_sampling_strategy={args.train_sampling_strategy!r} exclude each other."
        )
    args.train_sampling_strategy = "group_by_length"
