"""Values of flags that transformers does not check: they would fail later, in words that do not name the flag."""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
from typing import Any

_MAPPINGS = ("_kwargs", "_config")  # how the names of flags end that take JSON, or a file of it
_COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


def check_values(args: Any) -> None:
    """Checks that numbers are finite, sizes not 0 and JSON an object; for the start of `__post_init__`.

    Args:
        args: A dataclass of flags, its values as the parser made them.

    Raises:
        ValueError: If a number is infinite or not a number, a size of batches below 1, or if what should be a JSON
            object is none.
    """
    for field in dataclasses.fields(args):
        value = vars(args).get(field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} must be a finite number; got {field.name}={value}. Correct it.")
        if field.name in _COUNTS and isinstance(value, int) and value < 1:
            raise ValueError(f"{field.name} must be at least 1; got {field.name}={value}. Raise it.")
        if field.name.endswith(_MAPPINGS) and isinstance(value, str):
            _check_object(field.name, value)


def _check_object(name: str, text: str) -> None:
    if text.endswith(".json"):
        return  # a file, which transformers reads
    try:
        holds = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name} must be a JSON object, or a .json file of one; got {name}={reprlib.repr(text)} ({error}). Write "
            f"for example --{name} '{{}}'."
        ) from error
    if not isinstance(holds, dict):
        raise ValueError(
            f"{name} must be a JSON object, or a .json file of one; got {name}={reprlib.repr(text)}. Write for example "
            f"--{name} '{{}}'."
        )
