"""Made-up result files: a hundred items a set, of which a run has the first so many right."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.knowledge_forgetting.analysis.results import Results, read
from experiments.knowledge_forgetting.analysis.style import LOOKS

ITEMS = 100
ARMS = tuple(arm for arm in LOOKS if arm != "base")
ROUTING = {"coefficient_of_variation": 0.5, "share": {"0": [0.6, 0.4], "1": [0.3, 0.7]}}


class Grid:
    """A folder of results that grows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.sets()

    def sets(self, **chance: float) -> None:
        """Writes which sets there are, and how many of their items a guess has right."""
        content = {"knowledge": ["facts"], "downstream": ["tasks"], "chance": chance}
        (self.folder / "sets.json").write_text(json.dumps(content))

    def add(
        self, arm: str, rate: float, facts: Any, tasks: Any, *, seed: int = 0, rows: int = 400, **more: Any
    ) -> Path:
        """Writes a run; `facts` and `tasks` are shares of right items on test, or which items are right.

        On validation the same are right, if `validation` does not say otherwise.
        """
        test = {name: self._right(value) for name, value in (("facts", facts), ("tasks", tasks))}
        validation = {name: self._right(value) for name, value in more.pop("validation", {}).items()}
        splits = {"validation": {**test, **validation}, "test": test}
        changes = more.pop("changes", {})
        settings = {"scale": "made_up", "arm": arm, "learning_rate": rate, "rows": rows, "seed": seed}
        content = {
            "settings": {**settings, "changes": changes},
            "trainable_parameters": 1234,
            "accuracy": {split: {name: float(r.mean()) for name, r in of.items()} for split, of in splits.items()},
            "items": {split: {name: packed(r) for name, r in of.items()} for split, of in splits.items()},
            "counts": {split: {name: len(r) for name, r in of.items()} for split, of in splits.items()},
            "routing": more.pop("routing", None),
            "provenance": {
                "base": "ba5e" * 16,
                "code": "c0de" * 16,
                "items": "1735" * 16,
                "dirty": False,
                "commit": "0123456789abcdef",
                "versions": {"torch": "2.13.0"},
                "hardware": "a made-up machine",
                "date": f"2026-11-{20 + seed}",
            },
        }
        assert not more, more
        changed = "_".join(f"{key}-{len(json.dumps(value))}-{value}" for key, value in changes.items())
        file = self.folder / f"{arm}_{rate:g}_{rows}_{seed}_{changed}.json".replace(" ", "")
        file.write_text(json.dumps(content))
        return file

    def spoil(self, file: Path, path: str, value: Any) -> None:
        """Sets a field of a result file; ... takes it away."""
        content = json.loads(file.read_text())
        *parents, last = path.split(".")
        holder = content
        for key in parents:
            holder = holder[key]
        if value is ...:
            del holder[last]
        else:
            holder[last] = value
        file.write_text(json.dumps(content))

    def read(self) -> Results:
        return read(self.folder)

    @staticmethod
    def _right(value: Any) -> Any:
        return np.arange(ITEMS) < round(value * ITEMS) if isinstance(value, float) else np.asarray(value, dtype=bool)


def add_changed(grid: Grid) -> None:
    """Full fine-tuning and another arm with a change, which helps both; one seed more for one."""
    for seed in range(3):
        grid.add("full", 1.0, 0.8, 0.6, seed=seed)
        for arm, line in {"full": ((0.9, 0.7), (0.5, 0.8)), "loramoe_all": ((1.0, 0.65), (0.9, 0.8))}.items():
            for rate, (facts, tasks) in enumerate(line, 1):
                grid.add(arm, float(rate), facts, tasks, seed=seed, changes={"epochs": 2})
    grid.add("loramoe_all", 1.0, 0.0, 0.0, seed=10, changes={"epochs": 2})
    grid.add("full", 1.0, 0.0, 0.0, seed=0, rows=40, changes={"epochs": 2})


def packed(right: Any) -> str:
    """Which items are right as result files have it."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """A grid with the base alone, which knows all facts and does a fifth of the tasks."""
    made_up = Grid(tmp_path)
    made_up.add("base", 0.0, 1.0, 0.2, rows=0)
    return made_up


@pytest.fixture
def whole(grid: Grid) -> Grid:
    """A grid in which every study is complete."""
    for a, arm in enumerate(ARMS):
        routing = ROUTING if arm.startswith("loramoe") else None
        for seed in range(3):
            for n, rate in enumerate((1e-4, 3e-4, 1e-3, 3e-3)):
                kept, learnt = 0.95 - 0.2 * n + 0.01 * a, 0.5 + 0.12 * n - 0.01 * a + 0.01 * seed
                grid.add(arm, rate, kept, learnt, seed=seed, routing=routing)
            for rows in (40, 4000):
                grid.add(arm, 3e-4, 0.9 if rows == 40 else 0.6, 0.6, seed=seed, rows=rows)
    for key, values in {"lora_nums": [2, 16], "targets": [["down_proj"]], "unheard_of": ["word"]}.items():
        for value in values:
            grid.add("loramoe_paper", 3e-4, 0.8, 0.65, changes={key: value})
    return grid
