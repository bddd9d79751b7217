"""Flags from the command line, or from a .json or .yaml file that flags after it override.

A file is turned into a command line, so that its values pass the same checks. YAML is read as version 1.2 has it:
`2e-4` is a number and `no` a word, which `save_strategy: no` needs.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from loramoe.training.arguments import Arguments, DataArguments, TrainArguments
from loramoe.training.model_arguments import ModelArguments

FLAG_FILES = (".json", ".yaml", ".yml")
GROUPS = (ModelArguments, DataArguments, TrainArguments)
_DATA_KEYS = ("datasets", "validation", "type_names")  # what `loramoe.data.read_data_config` reads
_OWN_RESOLVERS = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
_BOOL_WORDS = {"on": "true", "off": "false"}


class _Loader(yaml.SafeLoader):
    """PyYAML reads version 1.1, in which `2e-4` is text and `no` is false."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as PyYAML has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OWN_RESOLVERS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"),
    "-+0123456789.",
)


def parse(argv: list[str] | None = None) -> Arguments:
    """Parses the flags of `loramoe train`.

    Args:
        argv: Flags, or one .json or .yaml file of them and flags that override it. Default: the command line.

    Returns:
        The model's, the data's and the training's arguments.

    Raises:
        ValueError: If a flag is unknown, or values contradict each other.
        FileNotFoundError: If the file does not exist.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # Without allow_abbrev=False, argparse would take --lora_r for --lora_rank.
    parser = HfArgumentParser(
        GROUPS,
        allow_abbrev=False,
        prog="loramoe train",
        usage="loramoe train [FILE.yaml] --flag value …   (--help lists all)",
    )
    names = {option: action.dest for option, action in parser._option_string_actions.items()}
    if argv and argv[0].endswith(FLAG_FILES):
        argv = flags_of_file(Path(argv[0])) + argv[1:]
    argv = _without_overridden(argv, names)
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(_unknown_flag(unknown[0], list(names)))
    _check_json(argv)
    return cast(Arguments, parser.parse_args_into_dataclasses(argv, look_for_args_file=False))


def flags_of_file(file: Path) -> list[str]:
    """Reads a .json or .yaml file of flags."""
    if not file.is_file():
        raise FileNotFoundError(f"no file of flags at {file} (looked in {Path.cwd()}). Correct the path.")
    try:
        values = yaml.load(file.read_bytes().decode("utf-8-sig"), _Loader)  # JSON is YAML
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{file}: neither JSON nor YAML ({_place(error)}). Correct it.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected one mapping of flags to values, got {type(values).__name__}.")
    if isinstance(values.get("datasets"), list):
        data = {key: values.pop(key) for key in _DATA_KEYS if key in values}
        values["datasets"] = json.dumps(data)
    return [word for name, value in values.items() if value is not None for word in _as_flag(str(name), value)]


def _place(error: Exception) -> str:
    """Without YAML's own quotation of the line, which may hold a token."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}, {error.problem}"
    return type(error).__name__


def _as_flag(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        words = [str(item) for item in value]
        return [f"--{name}", *words] if name in _word_flags() else [f"--{name}={','.join(words)}"]
    if isinstance(value, dict):
        return [f"--{name}={json.dumps(value)}"]
    word = str(value)
    word = _BOOL_WORDS.get(word, word) if bool in get_args(_hint(name)) or _hint(name) is bool else word
    return [f"--{name}={word}"]  # in one word, so that a value may begin with a dash


def _hint(name: str) -> Any:
    return next((hints[name] for group in GROUPS if name in (hints := get_type_hints(group))), None)


def _word_flags() -> set[str]:
    """Flags that take several words; elsewhere a list becomes one word with commas."""
    return {
        name
        for name, hint in get_type_hints(TrainArguments).items()
        if str not in get_args(hint) and any(get_origin(member) is list for member in (hint, *get_args(hint)))
    }


def _without_overridden(argv: list[str], names: dict[str, str]) -> list[str]:
    """The last of `--datasets` and `--dataset_dir` (or `--train_file`) wins, as the last of any flag does."""
    kept: list[tuple[str | None, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            kept.append((names.get(word.partition("=")[0]), [word]))
        elif kept:
            kept[-1][1].append(word)
        else:
            kept.append((None, [word]))
    sources = [place for place, (name, _) in enumerate(kept) if name in ("datasets", "dataset_dir")]
    return [word for place, (_, words) in enumerate(kept) if place not in sources[:-1] for word in words]


def _check_json(argv: list[str]) -> None:
    """Values of flags such as --lr_scheduler_kwargs; transformers' own error does not name the flag."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        value = value if equals else following
        if not name.startswith("--") or not name.endswith(("_kwargs", "_config")) or value.endswith(".json"):
            continue
        try:
            holds = json.loads(value)
        except ValueError:
            holds = None
        if not isinstance(holds, dict):
            raise ValueError(
                f"{name} must be a JSON object, or a .json file of one; got {value!r}. Write {name} '{{}}'."
            )


def _unknown_flag(word: str, options: list[str]) -> str:
    if not word.startswith("--"):
        return f"unexpected argument {word!r}: expected flags, --name value. Put values with spaces in quotes."
    name = word.partition("=")[0].replace("-", "_").replace("__", "--", 1)
    known = [option for option in options if option.startswith("--") and "-" not in option[2:]]
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown flag {name}.{f' Did you mean {close[0]}?' if close else ' See loramoe train --help for all.'}"
