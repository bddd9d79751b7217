"""Flags from a .json or .yaml file, turned into a command line: both then go through the same checks and conversions.

YAML reads `2e-4` as text; on a command line it is the number that was meant.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

FLAG_FILES = (".json", ".yaml", ".yml")


def flags_of_file(file: Path, group: type) -> list[str]:
    """Reads a .json or .yaml file of flags, so that its values pass the same checks as those of the command line.

    Args:
        file: One mapping from flag names to values; null leaves a flag at its default.
        group: The argument class whose flags may take several words; elsewhere a list becomes one word with commas.

    Returns:
        The flags as a command line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not hold one mapping.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file of flags at {file} (looked in {Path.cwd()}). Correct the path.")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: neither JSON nor YAML ({error}). Repair it.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected one mapping of flags to values, got {type(values).__name__}.")
    words = _flags_of_words(group)
    return [word for name, value in values.items() if value is not None for word in _as_flag(str(name), value, words)]


def _as_flag(name: str, value: Any, words: set[str]) -> list[str]:
    if isinstance(value, list):
        items = [str(item) for item in value]
        return [f"--{name}", *items] if name in words else [f"--{name}", ",".join(items)]
    if isinstance(value, dict):
        return [f"--{name}", json.dumps(value)]
    return [f"--{name}", str(value)]


def _flags_of_words(group: type) -> set[str]:
    return {name for name, hint in get_type_hints(group).items() if _takes_words(hint)}


def _takes_words(hint: Any) -> bool:
    members = (hint,) if get_origin(hint) is list else get_args(hint)
    return str not in members and any(get_origin(member) is list for member in members)
