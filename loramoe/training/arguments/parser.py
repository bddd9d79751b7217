"""Flags from the command line, or from .json and .yaml files among them, of which the last wins.

A file is turned into flags where it stands, so that its values pass the same checks. YAML is read as version 1.2 has
it: `2e-4` is a number and `no` a word, which `save_strategy: no` needs.
"""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import Any, Final

import yaml
from transformers import HfArgumentParser

from loramoe.training.arguments.flags import Arguments, DataArguments, ModelArguments, TrainArguments
from loramoe.utils import read_yaml

FLAG_FILES: Final = (".json", ".yaml", ".yml")
EXCLUSIVE: Final = (("datasets", "dataset_dir"), ("global_batch_size", "gradient_accumulation_steps"))


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
    parser, words, before = make_parser(), [], ""
    for word in sys.argv[1:] if argv is None else argv:
        is_value = word.startswith("--") or (before.startswith("--") and "=" not in before)
        words += flags_of_file(Path(word), parser) if word.endswith(FLAG_FILES) and not is_value else [word]
        before = word
    words = _drop_overridden(words, parser)
    _, unknown = parser.parse_known_args(words)
    if unknown:
        raise ValueError(_unknown_flag(unknown[0], list(parser._option_string_actions)))
    return Arguments(*parser.parse_args_into_dataclasses(words, look_for_args_file=False))


def make_parser() -> Any:
    """The parser of all flags."""
    return HfArgumentParser(
        (ModelArguments, DataArguments, TrainArguments),
        allow_abbrev=False,  # argparse would take --lora_r for --lora_rank
        prog="loramoe train",
        usage="loramoe train [FILE.yaml] --flag value …   (--help lists all)",
    )


def flags_of_file(file: Path, parser: Any) -> list[str]:
    """Reads a .json or .yaml file of flags."""
    if not file.is_file():
        raise FileNotFoundError(f"no file of flags at {file} (looked in {Path.cwd()}). Correct the path.")
    try:
        values = read_yaml(file.read_bytes().decode("utf-8-sig"))  # JSON is YAML
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)  # PyYAML's own text quotes the line, which may hold a token
        place = f"line {mark.line + 1}, {getattr(error, 'problem', '')}" if mark else type(error).__name__
        raise ValueError(f"{file}: neither JSON nor YAML ({place}). Correct it.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected one mapping of flags to values, got {type(values).__name__}. Correct it.")
    if isinstance(values.get("datasets"), list):
        keys = ("datasets", "validation", "type_names")  # as read_data_config has them
        values["datasets"] = {key: values.pop(key) for key in keys if key in values}
    words = []
    for name, value in values.items():
        action = parser._option_string_actions.get(f"--{name}")
        if isinstance(value, list) and action is not None and action.nargs in ("*", "+"):
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            text = json.dumps(value) if isinstance(value, dict) else text
            words.append(f"--{name}={text}")  # in one word, so that a value may begin with a dash
    return words


def _drop_overridden(words: list[str], parser: Any) -> list[str]:
    """Of two flags that exclude each other the last wins, as the last of any flag does."""
    flags: list[tuple[str | None, list[str]]] = []
    for word in words:
        if word.startswith("--") or not flags:
            action = parser._option_string_actions.get(word.partition("=")[0])
            flags.append((getattr(action, "dest", None), []))
        flags[-1][1].append(word)
    last = {name: next((n for n, _ in reversed(flags) if n in pair), name) for pair in EXCLUSIVE for name in pair}
    return [word for name, of_flag in flags if last.get(name or "", name) == name for word in of_flag]


def _unknown_flag(word: str, options: list[str]) -> str:
    if not word.startswith("--"):
        return f"unexpected argument {word!r}: expected flags, --name value. Put values with spaces in quotes."
    name = word.partition("=")[0].replace("-", "_").replace("__", "--", 1)
    known = [option for option in options if option.startswith("--") and "-" not in option[2:]]
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown flag {name}.{f' Did you mean {close[0]}?' if close else ' See loramoe train --help for all.'}"
