"""Flags from the command line, or from .json and .yaml files among them, of which the last wins.

A file is turned into flags where it stands, so that its values pass the same checks. YAML is read as version 1.2 has
it: `2e-4` is a number and `no` a word, which `save_strategy: no` needs.
"""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import Any, Final, cast

import yaml
from transformers import HfArgumentParser

from loramoe.training.arguments import Arguments, DataArguments, ModelArguments, TrainArguments
from loramoe.utils import read_yaml

FLAG_FILES: Final = (".json", ".yaml", ".yml")
EXCLUSIVE: Final = (("datasets", "dataset_dir"), ("global_batch_size", "gradient_accumulation_steps"))
_DATA_KEYS = ("datasets", "validation", "type_names")  # what `loramoe.data.read_data_config` reads


def parse(argv: list[str] | None = None) -> Arguments:
    """Parses the flags of `loramoe train`.

    Args:
        argv: Flags, and .json or .yaml files of flags. Default: the command line.

    Returns:
        The model's, the data's and the training's arguments.

    Raises:
        ValueError: If a flag is unknown, or values contradict each other.
        FileNotFoundError: If a file of flags does not exist.
    """
    parser = make_parser()
    argv = _last_of_exclusive(_with_files(list(sys.argv[1:] if argv is None else argv), parser), parser)
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(_unknown_flag(unknown[0], list(parser._option_string_actions)))
    return cast(Arguments, parser.parse_args_into_dataclasses(argv, look_for_args_file=False))


def make_parser() -> Any:
    """The parser of all flags."""
    return HfArgumentParser(
        (ModelArguments, DataArguments, TrainArguments),
        allow_abbrev=False,  # argparse would take --lora_r for --lora_rank
        prog="loramoe train",
        usage="loramoe train [FILE.yaml] --flag value …   (--help lists all)",
    )


def _with_files(argv: list[str], parser: Any) -> list[str]:
    """Replaces each file of flags by its flags; a file that follows `--name` is the value of that flag."""
    words: list[str] = []
    for before, word in zip(["", *argv], argv, strict=False):
        is_value = word.startswith("--") or (before.startswith("--") and "=" not in before)
        words += flags_of_file(Path(word), parser) if word.endswith(FLAG_FILES) and not is_value else [word]
    return words


def flags_of_file(file: Path, parser: Any) -> list[str]:
    """Reads a .json or .yaml file of flags."""
    if not file.is_file():
        raise FileNotFoundError(f"no file of flags at {file} (looked in {Path.cwd()}). Correct the path.")
    try:
        values = read_yaml(file.read_bytes().decode("utf-8-sig"))  # JSON is YAML
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: neither JSON nor YAML ({_place(error)}). Correct it.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected one mapping of flags to values, got {type(values).__name__}. Correct it.")
    if isinstance(values.get("datasets"), list):
        values["datasets"] = {key: values.pop(key) for key in _DATA_KEYS if key in values}
    return [
        word for name, value in values.items() if value is not None for word in _as_flag(f"--{name}", value, parser)
    ]


def _place(error: Exception) -> str:
    """Without YAML's own quotation of the line, which may hold a token."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}, {error.problem}"
    return type(error).__name__


def _as_flag(flag: str, value: Any, parser: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{flag}={json.dumps(value)}"]
    if isinstance(value, list):
        action = parser._option_string_actions.get(flag)
        if action is not None and action.nargs in ("*", "+"):
            return [flag, *map(str, value)]
        value = ",".join(map(str, value))
    return [f"{flag}={value}"]  # in one word, so that a value may begin with a dash


def _last_of_exclusive(argv: list[str], parser: Any) -> list[str]:
    """Of two flags that exclude each other the last wins, as the last of any flag does."""
    flags: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not flags:
            flags.append([])
        flags[-1].append(word)
    actions = parser._option_string_actions
    names = [getattr(actions.get(flag[0].partition("=")[0]), "dest", None) for flag in flags]
    for pair in EXCLUSIVE:
        for place in [place for place, name in enumerate(names) if name in pair][:-1]:
            flags[place] = []
    return [word for flag in flags for word in flag]


def _unknown_flag(word: str, options: list[str]) -> str:
    if not word.startswith("--"):
        return f"unexpected argument {word!r}: expected flags, --name value. Put values with spaces in quotes."
    name = word.partition("=")[0].replace("-", "_").replace("__", "--", 1)
    known = [option for option in options if option.startswith("--") and "-" not in option[2:]]
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown flag {name}.{f' Did you mean {close[0]}?' if close else ' See loramoe train --help for all.'}"
