"""Flags from a .json or .yaml file, turned into a command line: both then go through the same checks and conversions.

YAML reads `2e-4` as text; on a command line it is the number that was meant.
"""

from __future__ import annotations

import json
import reprlib
from datetime import date
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

FLAG_FILES = (".json", ".yaml", ".yml")


class _Loader(yaml.SafeLoader):
    """Loads plain values, and lists that are named again nowhere: a few lines of those can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        again = self.check_event(yaml.AliasEvent)
        node: yaml.Node | None = super().compose_node(parent, index)
        if again and not isinstance(node, yaml.ScalarNode):
            raise ValueError("an alias of a list or mapping: write it out")
        return node


def flags_of_file(file: Path, group: type) -> list[str]:
    """Reads a .json or .yaml file of flags, so that its values pass the same checks as those of the command line.

    Args:
        file: One mapping from flag names to values; null leaves a flag at its default.
        group: The argument class whose flags may take several words; elsewhere a list becomes one word with commas.

    Returns:
        The flags as a command line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, does not hold one mapping, or holds what no flag can be.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file of flags at {file} (looked in {Path.cwd()}). Correct the path.")
    values = _load(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected one mapping of flags to values, got {type(values).__name__}.")
    words = _flags_of_words(group)
    try:
        return [word for name, value in values.items() if value is not None for word in _as_flag(name, value, words)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def _load(file: Path) -> Any:
    try:
        return yaml.load(file.read_bytes().decode("utf-8-sig"), _Loader)  # JSON is YAML
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}). Make it a file that you may read.") from error
    except yaml.MarkedYAMLError as error:  # its own text would show the line, which may hold a token
        where = f"line {error.problem_mark.line + 1}, " if error.problem_mark else ""
        raise ValueError(f"{file}: neither JSON nor YAML ({where}{error.problem}). Repair it.") from error
    except RecursionError as error:
        raise ValueError(f"{file}: neither JSON nor YAML (nested too deeply). Repair it.") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # no UTF-8, no date, a number of thousands of digits
        raise ValueError(f"{file}: neither JSON nor YAML ({' '.join(str(error).split())}). Repair it.") from error


def _as_flag(name: Any, value: Any, words: set[str]) -> list[str]:
    if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
        raise ValueError(f"{reprlib.repr(name)} is no name of a flag. Correct it.")
    if isinstance(value, list):
        items = [_as_word(name, item) for item in value]
        return [f"--{name}", *items] if name in words else [f"--{name}={','.join(items)}"]
    if isinstance(value, dict):
        return [f"--{name}={json.dumps(value)}"]
    return [f"--{name}={_as_word(name, value)}"]  # in one word, so that a value may begin with a dash


def _as_word(name: str, value: Any) -> str:
    if not isinstance(value, (str, int, float, date)):
        raise ValueError(f"{name} is given a {type(value).__name__}; expected text, a number, or a list of them.")
    return str(value)


def _flags_of_words(group: type) -> set[str]:
    return {name for name, hint in get_type_hints(group).items() if _takes_words(hint)}


def _takes_words(hint: Any) -> bool:
    members = (hint,) if get_origin(hint) is list else get_args(hint)
    return str not in members and any(get_origin(member) is list for member in members)
