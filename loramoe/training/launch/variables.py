"""The variables of run_loramoe.sh as flags of train.py."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import yaml

from loramoe.utils import UsageError

ROOT: Final = Path(__file__).parents[3]
TINY_MODEL, TINY_DATA = "data/tiny_llama", "data/tiny_data/train"
FLAG_FILES: Final = (".json", ".yaml", ".yml")
FLAG_NAMES: Final = {"pretrained_model": "model_name_or_path", "tokenizer_path": "tokenizer_name_or_path"}
# Flags that a user's flag replaces, beside the one of its own name.
REPLACES: Final = {
    "base_model": ["model_name_or_path"],
    "adapter": ["peft_path"],
    "template": ["prompt_template"],
    "dtype": ["torch_dtype"],
    "train_file": ["dataset_dir", "datasets"],
    "datasets": ["dataset_dir"],
    "validation": ["validation_file"],
    "validation_split_percentage": ["validation_file"],
    "evaluation_strategy": ["eval_strategy"],
    "global_batch_size": ["gradient_accumulation_steps"],
}


def check_names(names: Collection[str], environment: Mapping[str, str]) -> None:
    """Raises UsageError for an environment variable whose name nearly is one of `names`."""
    long = [name for name in names if len(name) > 4]
    for name in environment.keys() - set(names):
        if not re.fullmatch(r"[a-z][a-z0-9_]{4,}", name):
            continue
        for close in difflib.get_close_matches(name, long, n=1, cutoff=0.85):
            raise UsageError(
                f"the environment sets {name}={environment[name]}, which is no variable of run_loramoe.sh. Did you "
                f"mean {close}? Correct it, or unset {name}."
            )


def is_true(value: str | None) -> bool:
    """Whether a flag's value is true, as train.py reads it."""
    return value is not None and value.lower() in ("true", "t", "yes", "y", "1")


def project_file(path: str) -> str:
    """Paths are relative to where the user stands; the project's own files are found from anywhere."""
    own = path.startswith(("data/tiny_", "configs/", "ds_config.json")) and not Path(path).exists()
    return str(ROOT / path) if own and (ROOT / path).exists() else path


def _is(path: str, embedded: str) -> bool:
    return path == embedded or Path(path).absolute() == ROOT / embedded


class FlagBuilder:
    """Builds the flags of train.py.

    Args:
        values: Hyper-parameters by their names in run_loramoe.sh, and `tiny_llama`, those of the embedded model.
        flags: The user's flags; the first may be a file of flags.
        environment: The environment; the variables in it were chosen by the user.

    Attributes:
        values: The hyper-parameters; an empty one leaves its flag out.
        given: Values of the user's flags, by name.
    """

    def __init__(self, values: dict[str, str], flags: list[str], environment: Mapping[str, str]) -> None:
        self._tiny_values = values.pop("tiny_llama", None)
        self.values, self._flags = values, flags
        self._chosen = environment.keys() & values.keys()
        self.given = _names_and_values(flags)

    def fill_from_model_and_data(self) -> bool:
        """Fills in what follows from the model and the data; returns whether the model is the embedded one.

        Raises:
            UsageError: If there is data of the user's, and no model is named.
        """
        if self._tiny_values is None:  # not started by run_loramoe.sh
            return False
        values = self.values
        for name, other in (("datasets", "dataset_dir"), ("global_batch_size", "gradient_accumulation_steps")):
            if values.get(name) and other not in self._chosen:
                values[other] = ""
        named = self.given.get("model_name_or_path", self.given.get("base_model"))
        model = named or values["pretrained_model"]
        name, data = self._data()
        is_tiny = _is(model, TINY_MODEL)
        if is_tiny and not _is(data, TINY_DATA) and not named and "pretrained_model" not in self._chosen:
            raise UsageError(
                f"{name}={data} is your data, but no model is named, and the default is the embedded one of 1.3 "
                f"million parameters. Run pretrained_model=meta-llama/Meta-Llama-3-8B {name}={data} bash "
                f"run_loramoe.sh, or pretrained_model={TINY_MODEL} to train the embedded one."
            )
        if is_tiny:
            tiny_values = dict(pair.split("=", 1) for pair in self._tiny_values.split())
            values |= {name: value for name, value in tiny_values.items() if name not in self._chosen}
            values["recall_file"] = values.get("recall_file") or "data/tiny_data/recall.json"
        if _is(data, TINY_DATA):
            values["validation_file"] = values.get("validation_file") or "data/tiny_data/test.json"
        values["output_dir"] = values.get("output_dir") or f"output/{Path(model).name}"
        for name in ("pretrained_model", "dataset_dir", "validation_file", "recall_file"):
            values[name] = project_file(values.get(name, ""))
        return is_tiny

    def _data(self) -> tuple[str, str]:
        names = ("train_file", "datasets", "dataset_dir")
        found = [(name, self.given[name]) for name in names if name in self.given]
        found += [(name, self.values[name]) for name in names if self.values.get(name)]
        return found[0] if found else ("dataset_dir", TINY_DATA)

    def set_precision(self, has_bf16: bool) -> None:
        """Sets bf16 where the devices have it, unless the user has chosen a precision."""
        fp16 = is_true(self.given.get("fp16", self.values.get("fp16")))
        if fp16 or not self.values.get("bf16"):
            self.values["bf16"] = "true" if has_bf16 and not fp16 else ""

    def flags(self) -> list[str]:
        """The flags: the user's file, the hyper-parameters that no flag of the user's replaces, the user's flags."""
        replaced = {*self.given, *(name for flag in self.given for name in REPLACES.get(flag, ()))}
        flags = {FLAG_NAMES.get(name, name): value for name, value in self.values.items()}
        words = [
            word for name, value in flags.items() if value and name not in replaced for word in (f"--{name}", value)
        ]
        file = self._flags[:1] if self._flags and self._flags[0].endswith(FLAG_FILES) else []
        return [*file, *words, *self._flags[len(file) :]]


def _names_and_values(flags: list[str]) -> dict[str, str]:
    """What the user's flags set, by name with underscores; a flag without value is "true"."""
    given: dict[str, str] = {}
    if flags and flags[0].endswith(FLAG_FILES):
        with contextlib.suppress(OSError, ValueError, TypeError, yaml.YAMLError):  # train.py names the fault
            content = dict(yaml.safe_load(Path(flags[0]).read_text(encoding="utf-8-sig")))
            given |= {str(name): str(value) for name, value in content.items() if value is not None}
    for word, following in zip(flags, [*flags, "--"][1:], strict=True):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--"):
            given[name.replace("-", "_")] = value if equals else "true" if following.startswith("--") else following
    return given
