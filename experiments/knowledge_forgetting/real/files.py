"""The folder of public data: reading its files, and drawing from them the same way every time."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read(data: Path, name: str) -> Any:
    """Reads a file of entries.

    Args:
        data: The folder that was given as `--data`.
        name: Path of the file in it, `.json` or `.jsonl`.

    Returns:
        What the file says; of `.jsonl` a list, one entry a line.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    file = data / name
    if not file.is_file():
        raise FileNotFoundError(
            f"expected {name} in the data folder, got {data} without it. Pass --data the folder that "
            "experiments/knowledge_forgetting/real/README.md describes."
        )
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def shuffled(values: Sequence[T], *seed: object) -> list[T]:
    """A copy in an order that depends on nothing but the seed: any values whose texts tell what is drawn, and when."""
    copy = list(values)
    random.Random(":".join(map(str, seed))).shuffle(copy)
    return copy
