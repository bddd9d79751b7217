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
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from experiments.knowledge_forgetting.provenance import earliest
from experiments.knowledge_forgetting.scale import Split

SETS_FILE: Final = "sets.json"
SUMMARY_FILE: Final = "summary.json"
BEYOND: Final = "beyond"  # folder, beside the others, of runs at learning rates beyond those that arms are compared at
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
_SHARED: Final = {"base": "base model", "code": "code", "items": "items"}  # of all runs that are compared
_ROUTING: Final = {"coefficient_of_variation": float, "share": dict}


@dataclass(frozen=True)
class Sets:
    """Which sets of items count as what; the accuracy of either kind is the mean over its sets.

    Attributes:
        knowledge: What the base knew, and what fine-tuning may have overwritten.
        downstream: What fine-tuning was for.
        chance: For each set, the share of its items that a guess has right; 0 where there is nothing to choose from.
        uncounted: Downstream sets that no arm has learnt: told, but in no mean; see `learnt`.
    """

    knowledge: tuple[str, ...]
    downstream: tuple[str, ...]
    chance: Mapping[str, float]
    uncounted: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, knowledge first."""
        return self.knowledge + self.downstream + self.uncounted


@dataclass(frozen=True, eq=False)
class Run:
    """One run of the grid.

    Attributes:
        file: Name of its file.
        scale: Name of its scale: "tiny", "real", …
        arm: What was trained: "full", "lora_mlp", …; "base" is the model before all training.
        learning_rate: Peak of its schedule.
        rows: How many rows it was trained on.
        seed: Of the order of the rows and of the adapter's starting values.
        changes: What an ablation set otherwise than the arm has it.
        trainable_parameters: How many.
        accuracy: By split and set, as shares.
        items: By split and set, which items were right, in the scale's fixed order.
        routing: What the experts did, if there are any.
        provenance: Base model, code, items, commit, versions, hardware and date.
    """

    file: str
    scale: str
    arm: str
    learning_rate: float
    rows: int
    seed: int
    changes: Mapping[str, Any]
    trainable_parameters: int
    accuracy: Mapping[Split, Mapping[str, float]]
    items: Mapping[Split, Mapping[str, NDArray[np.bool_]]]
    routing: Mapping[str, Any] | None
    provenance: Mapping[str, Any]

    def mean(self, split: Split, names: tuple[str, ...]) -> float:
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
        beyond: Runs of the folder `beyond`: told, but compared with none.
    """

    base: Run
    trained: tuple[Run, ...]
    sets: Sets
    beyond: tuple[Run, ...] = ()

    def kept(self, run: Run) -> float:
        """The share of the base's knowledge that a run keeps on the test split, corrected for chance.

        Args:
            run: The run.

        Returns:
            The mean over sets of (accuracy − chance) / (accuracy of the base − chance).
        """
        names, chance = self.sets.knowledge, self.sets.chance
        accuracy, base = run.accuracy["test"], self.base.accuracy["test"]
        return sum((accuracy[name] - chance[name]) / (base[name] - chance[name]) for name in names) / len(names)


def read(folder: Path) -> Results:
    """Reads the result files of a scale.

    Args:
        folder: With one JSON file for each run, and `sets.json`; perhaps with a folder `beyond` of further runs.

    Returns:
        The runs.

    Raises:
        ValueError: If a file lacks a field or contradicts itself or another, no run is that of the base, or the base
            knows no more than a guess.
    """
    sets = _read_sets(folder / SETS_FILE)
    files = sorted(file for file in folder.glob("*.json") if file.name not in (SETS_FILE, SUMMARY_FILE))
    runs = [_read_run(file, file.name, sets) for file in files]
    beyond = [_read_run(file, f"{BEYOND}/{file.name}", sets) for file in sorted((folder / BEYOND).glob("*.json"))]
    _check_together([*runs, *beyond], sets)
    bases = [run for run in runs if run.arm == "base"]
    if len(bases) != 1:
        raise ValueError(
            f"{folder} holds {len(bases)} runs of the arm base, which all others are measured against; expected 1."
        )
    _check_base(bases[0], sets)
    return Results(bases[0], tuple(run for run in runs if run.arm != "base"), sets, tuple(beyond))


def _read_sets(file: Path) -> Sets:
    content = _Fields(file)
    kinds = {}
    for kind in ("knowledge", "downstream"):
        names = content.get(kind, list)
        if not names:
            raise ValueError(f"{file}: {kind} is empty; expected the names of at least one set of items.")
        kinds[kind] = tuple(names)
    chance = dict.fromkeys((*kinds["knowledge"], *kinds["downstream"]), 0.0)
    for name in content.get("chance", dict):
        if name not in chance:
            raise ValueError(f"{file}: chance names the set {name!r}; expected sets of knowledge and downstream alone.")
        chance[name] = content.share(f"chance.{name}")
    return Sets(**kinds, chance=chance)


def _read_run(file: Path, name: str, sets: Sets) -> Run:
    fields = _Fields(file)
    items = {split: {of_set: _read_items(fields, split, of_set) for of_set in sets.names} for split in SPLITS}
    return Run(
        file=name,
        scale=fields.get("settings.scale", str),
        arm=fields.get("settings.arm", str),
        learning_rate=fields.get("settings.learning_rate", float),
        rows=fields.get("settings.rows", int),
        seed=fields.get("settings.seed", int),
        changes=fields.get("settings.changes", dict),
        trainable_parameters=fields.get("trainable_parameters", int),
        accuracy={split: {name: float(right.mean()) for name, right in of.items()} for split, of in items.items()},
        items=items,
        routing=_read_routing(fields),
        provenance=_read_provenance(fields),
    )


def _read_routing(fields: _Fields) -> Mapping[str, Any] | None:
    if fields.get("routing", dict, optional=True) is None:
        return None
    return {name: fields.get(f"routing.{name}", kind) for name, kind in _ROUTING.items()}


def _read_provenance(fields: _Fields) -> Mapping[str, Any]:
    for key in _SHARED:
        fields.get(f"provenance.{key}", str)
    fields.get("provenance.dirty", bool)
    provenance: Mapping[str, Any] = fields.get("provenance", dict)
    return provenance


def _read_items(fields: _Fields, split: Split, name: str) -> NDArray[np.bool_]:
    field, count = f"items.{split}.{name}", fields.get(f"counts.{split}.{name}", int)
    try:
        packed = np.frombuffer(base64.b64decode(fields.get(field, str), validate=True), dtype=np.uint8)
    except binascii.Error as error:
        raise ValueError(f"{fields.file}: {field} is no base64 ({error}).") from error
    if count < 1 or len(packed) != (count + 7) // 8:
        raise ValueError(f"{fields.file}: {field} holds {len(packed)} bytes, which is not what {count} items fill.")
    items = np.unpackbits(packed, count=count).astype(np.bool_)
    accuracy = fields.share(f"accuracy.{split}.{name}")
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
        _check_comparable(run, runs[0], sets)


def _check_comparable(run: Run, first: Run, sets: Sets) -> None:
    for key, what in _SHARED.items():
        here, there = run.provenance[key], first.provenance[key]
        if here != there and not (key == "code" and earliest(here) == earliest(there)):
            raise ValueError(
                f"{run.file} and {first.file} are not of the same {what} (provenance.{key}: {here[:12]} and "
                f"{there[:12]}), so they cannot be compared. Remove the older ones, and their runs are made again."
            )
    for split in SPLITS:
        for name in sets.names:
            found, expected = len(run.items[split][name]), len(first.items[split][name])
            if found != expected:
                where = f"{run.file}: {found} items of {name} in {split}, but {first.file} has {expected}"
                raise ValueError(f"{where}; runs are compared item by item, so run one of them again.")


def _check_base(base: Run, sets: Sets) -> None:
    for split in SPLITS:
        for name in sets.knowledge:
            accuracy, chance = base.accuracy[split][name], sets.chance[name]
            if accuracy <= chance:
                raise ValueError(
                    f"{base.file}: the base has {accuracy:.3f} of {name} in {split}, a guess {chance:.3f}: there is no "
                    "knowledge to keep. Take the set out of knowledge, or ask for what the base knows."
                )


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
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"{self.file}: {path} is {value!r}; expected {kind.__name__}.")
        return value

    def share(self, path: str) -> float:
        """A number between 0 and 1."""
        value: float = self.get(path, float)
        if not 0 <= value <= 1:
            raise ValueError(f"{self.file}: {path} is {value}; expected a share, between 0 and 1.")
        return value
