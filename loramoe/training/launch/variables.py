"""The variables of run_loramoe.sh as flags of train.py."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import yaml

from loramoe.utils import UsageError, read_yaml

ROOT: Final = Path(__file__).parents[3]
TINY_MODEL, TINY_DATA = "data/tiny_llama", "data/tiny_data/train"


def check_names(names: Collection[str], environment: Mapping[str, str]) -> None:
    """Raises UsageError if the environment has a hyper-parameter that the script with these variables would ignore."""
    others = [name for name in environment if name not in names and re.fullmatch(r"[a-z][a-z0-9_]{4,}", name)]
    for name in others:
        close = difflib.get_close_matches(name, [n for n in names if len(n) > 4], n=1, cutoff=0.85)
        if close:
            raise UsageError(
                f"the environment sets {name}={environment[name]}, which is no variable of run_loramoe.sh. Did you "
                f"mean {close[0]}? Correct it, or unset {name}."
            )
    several_words = {name for name in others if "_" in name and not name.endswith("_proxy")}
    if not several_words:
        return
    from loramoe.training.arguments.parser import make_parser  # imports transformers

    for name in several_words & {option[2:] for option in make_parser()._option_string_actions}:
        raise UsageError(
            f"the environment sets {name}={environment[name]}, a flag of train.py that is no variable of "
            f"run_loramoe.sh. Write --{name} {environment[name]} after the script, or unset {name}."
        )


def is_true(value: str | None) -> bool:
    """Whether a flag's value is true, as train.py reads it."""
    return value is not None and value.lower() in ("true", "t", "yes", "y", "1")


def project_file(path: str) -> str:
    """Paths are relative to where the user stands; the project's own files are found from anywhere."""
    own = path.startswith(("data/tiny_", "configs/", "ds_config.json")) and not Path(path).exists()
    return str(ROOT / path) if own and (ROOT / path).exists() else path


def read_flags(flags: list[str]) -> argparse.Namespace:
    """The user's flags that decide how a run is started; the first may be a file of flags."""
    words = [re.sub(r"^--[^=]*", lambda name: name[0].replace("-", "_").replace("__", "--", 1), w) for w in flags]
    if flags and flags[0].endswith((".json", ".yaml", ".yml")):
        with contextlib.suppress(OSError, ValueError, TypeError, yaml.YAMLError):  # train.py names the fault
            content = dict(read_yaml(Path(flags[0]).read_text(encoding="utf-8-sig")))
            words = [*(f"--{name}={value}" for name, value in content.items() if value is not None), *words]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--base_model", "--model_name_or_path", "--model")
    parser.add_argument("--dataset_dir", "--train_file")
    for name in ("datasets", "validation_split_percentage", "deepspeed", "fsdp"):
        parser.add_argument(f"--{name}")
    for name in ("bf16", "fp16", "use_cpu"):
        parser.add_argument(f"--{name}", nargs="?", const="true")
    return parser.parse_known_args(words)[0]


def fill_values(values: dict[str, str], given: argparse.Namespace, chosen: Collection[str]) -> bool:
    """Fills in what follows from the model and the data; returns whether the model is the embedded one.

    `values` are the variables of the script, `given` the user's flags, `chosen` the variables that the user has set.
    """
    tiny_values = values.pop("tiny_llama", None)
    if tiny_values is None:  # not started by run_loramoe.sh
        return False
    model = given.base_model or values["pretrained_model"]
    places = [(name, source.get(name)) for source in (vars(given), values) for name in ("datasets", "dataset_dir")]
    name, data = next((name, place) for name, place in places if place)
    is_tiny, is_tiny_data = _is_same(model, TINY_MODEL), _is_same(data, TINY_DATA)
    if is_tiny and not is_tiny_data and not given.base_model and "pretrained_model" not in chosen:
        raise UsageError(
            f"{name}={data} is your data, but no model is named, and the default is the embedded one of 1.3 "
            f"million parameters. Run pretrained_model=meta-llama/Meta-Llama-3-8B {name}={data} bash "
            f"run_loramoe.sh, or pretrained_model={TINY_MODEL} to train the embedded one."
        )
    defaults = {"output_dir": f"output/{Path(model).name}"}
    if is_tiny:
        pairs = dict(pair.split("=", 1) for pair in tiny_values.split())
        values |= {name: value for name, value in pairs.items() if name not in chosen}
        defaults["recall_file"] = "data/tiny_data/recall.json"
    if is_tiny_data and given.validation_split_percentage is None:
        defaults["validation_file"] = "data/tiny_data/test.json"
    values |= {name: value for name, value in defaults.items() if not values.get(name)}
    for name in ("pretrained_model", "dataset_dir", "validation_file", "recall_file"):
        values[name] = project_file(values.get(name, ""))
    return is_tiny


def _is_same(path: str, embedded: str) -> bool:
    return path == embedded or Path(path).absolute() == ROOT / embedded
