"""Result files of a scale, read and checked before anything is computed from them.

Runs are compared item by item, so what would break the pairing (other items, a file cut off, an accuracy that its own
items contradict) is refused here, with the file and the field.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SETS_FILE: Final = "sets.json"
SUMMARY_FILE: Final = "summary.json"
_ROUTING: Final = {"coefficient_of_variation": float, "share": dict}


@dataclass(frozen=True)
class Sets:
    """Which sets of items count as what; the accuracy of either kind is the mean over its sets.

    Attributes:
        knowledge: What the base knew, and what fine-tuning may have overwritten.
        downstream: What fine-tuning was for.
    """

    knowledge: tuple[str, ...]
    downstream: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, knowledge first."""
        return self.knowledge + self.downstream


@dataclass(frozen=True, eq=False)
class Run:
    """One run of the grid.

    Attributes:
        file: Name of its file.
        arm: What was trained: "full", "lora_mlp", …; "base" is the model before all training.
        learning_rate: Peak of its schedule.
        rows: How many rows it was trained on.
        seed: Of the order of the rows and of the adapter's starting values.
        changes: What an ablation set otherwise than the arm has it.
        trainable_parameters: How many.
        accuracy: By split and set, as shares.
        items: For each set of the test split, which items were right, in the scale's fixed order.
        routing: What the experts did, if there are any.
        provenance: Commit, versions, hardware, threads and date.
    """

    file: str
    arm: str
    learning_rate: float
    rows: int
    seed: int
    changes: Mapping[str, Any]
    trainable_parameters: int
    accuracy: Mapping[str, Mapping[str, float]]
    items: Mapping[str, NDArray[np.bool_]]
    routing: Mapping[str, Any] | None
    provenance: Mapping[str, Any]

    def mean(self, split: str, names: tuple[str, ...]) -> float:
        """Mean accuracy over sets.

        Args:
            split: "validation" or "test".
            names: The sets.

        Returns:
            A share.
        """
        return sum(self.accuracy[split][name] for name in names) / len(names)


@dataclass(frozen=True)
class Results:
    """All runs of a scale.

    Attributes:
        base: The model before all training.
        trained: The others, in the order of their files' names.
        sets: Which sets count as what.
    """

    base: Run
    trained: tuple[Run, ...]
    sets: Sets


def read(folder: Path) -> Results:
    """Reads the result files of a scale.

    Args:
        folder: With one JSON file for each run, and `sets.json`.

    Returns:
        The runs.

    Raises:
        ValueError: If a file lacks a field or contradicts itself or another, or no run is that of the base.
    """
    sets = _read_sets(folder / SETS_FILE)
    files = sorted(file for file in folder.glob("*.json") if file.name not in (SETS_FILE, SUMMARY_FILE))
    runs = [_read_run(file, sets) for file in files]
    _check_together(runs, sets)
    bases = [run for run in runs if run.arm == "base"]
    if len(bases) != 1:
        raise ValueError(
            f"{folder} holds {len(bases)} runs of the arm base, which all others are measured against; expected 1."
        )
    return Results(bases[0], tuple(run for run in runs if run.arm != "base"), sets)


def _read_sets(file: Path) -> Sets:
    content = _Fields(file)
    kinds = {}
    for kind in ("knowledge", "downstream"):
        names = content.get(kind, list)
        if not names:
            raise ValueError(f"{file}: {kind} is empty; expected the names of at least one set of items.")
        kinds[kind] = tuple(names)
    return Sets(**kinds)


def _read_run(file: Path, sets: Sets) -> Run:
    fields = _Fields(file)
    items = {name: _read_items(fields, name) for name in sets.names}
    return Run(
        file=file.name,
        arm=fields.get("settings.arm", str),
        learning_rate=fields.get("settings.learning_rate", float),
        rows=fields.get("settings.rows", int),
        seed=fields.get("settings.seed", int),
        changes=fields.get("settings.changes", dict),
        trainable_parameters=fields.get("trainable_parameters", int),
        accuracy={
            "validation": {name: fields.share(f"accuracy.validation.{name}") for name in sets.names},
            "test": {name: float(right.mean()) for name, right in items.items()},
        },
        items=items,
        routing=_read_routing(fields),
        provenance=fields.get("provenance", dict),
    )


def _read_routing(fields: _Fields) -> Mapping[str, Any] | None:
    if fields.get("routing", dict, optional=True) is None:
        return None
    return {name: fields.get(f"routing.{name}", kind) for name, kind in _ROUTING.items()}


def _read_items(fields: _Fields, name: str) -> NDArray[np.bool_]:
    field, count = f"items.test.{name}", fields.get(f"counts.test.{name}", int)
    try:
        packed = np.frombuffer(base64.b64decode(fields.get(field, str), validate=True), dtype=np.uint8)
    except binascii.Error as error:
        raise ValueError(f"{fields.file}: {field} is no base64 ({error}).") from error
    if count < 1 or len(packed) != (count + 7) // 8:
        raise ValueError(f"{fields.file}: {field} holds {len(packed)} bytes, which is not what {count} items fill.")
    items = np.unpackbits(packed, count=count).astype(np.bool_)
    accuracy = fields.share(f"accuracy.test.{name}")
    if round(accuracy * count) != items.sum():
        raise ValueError(f"{fields.file}: {field} has {items.sum()} right of {count}, but the accuracy is {accuracy}.")
    return items


def _check_together(runs: list[Run], sets: Sets) -> None:
    seen: dict[str, str] = {}
    for run in runs:
        settings = json.dumps([run.arm, run.learning_rate, run.rows, run.seed, run.changes], sort_keys=True)
        if settings in seen:
            raise ValueError(f"{run.file} and {seen[settings]} are the same run, {settings}; remove one of them.")
        seen[settings] = run.file
        for name in sets.names:
            here, first = len(run.items[name]), len(runs[0].items[name])
            if here != first:
                where = f"{run.file}: {here} items of {name}, but {runs[0].file} has {first}"
                raise ValueError(f"{where}; runs are compared item by item, so run one of them again.")


class _Fields:
    """A JSON file whose fields are asked for by their path."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"{file} is missing.") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not JSON ({error}); remove it, and its run is made again.") from error

    def get(self, path: str, kind: type, optional: bool = False) -> Any:
        """The value at a path such as "settings.seed", checked for its type; whole numbers do as float."""
        value = self._content
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"{self.file}: the field {path} is missing.")
            value = value[key]
        if optional and value is None:
            return None
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise ValueError(f"{self.file}: {path} is {value!r}; expected {kind.__name__}.")
        return value

    def share(self, path: str) -> float:
        """A number between 0 and 1."""
        value: float = self.get(path, float)
        if not 0 <= value <= 1:
            raise ValueError(f"{self.file}: {path} is {value}; expected a share, between 0 and 1.")
        return value
