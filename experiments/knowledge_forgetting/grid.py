"""The runs of each study, and the work through them: several at a time, and each once, however often it is interrupted.

Studies share runs: the main grid's are also points of the others.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from experiments.knowledge_forgetting.arms import ARMS, Recipe, recipe_of
from experiments.knowledge_forgetting.changes import ABLATIONS, BEST, CONTROLS, FINALISTS, LARGER, LONGER, RECIPES
from experiments.knowledge_forgetting.provenance import earliest, provenance_of
from experiments.knowledge_forgetting.run import Settings, plain, run
from experiments.knowledge_forgetting.scale import Scale, gone_through
from loramoe.utils import write_json

SEEDS = (0, 1, 2)
RECIPE_SEEDS = (10, 11)  # recipes are chosen with other seeds, and on validation items: what wins is then measured anew
ROWS_ARMS = ("full", "lora_all", "loramoe_paper", "loramoe_all")
# The rows study takes the second learning rate of an arm, at which those of the tiny scale still keep most of what they
# knew. The real model loses nothing on the 400 rows of its main grid at the rates that are best for them. So its rows
# study takes the third rate, which is the best, and five and ten times as many rows; its main grid a fifth rate, too
# high.
ROWS_RATE: Mapping[str, int] = {"real": 2, "real_gpu": 2}
MORE_ROWS: Mapping[str, tuple[int, ...]] = {"real": (2_000, 4_000)}
MORE_RATES: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "real": {"full": (1e-3,), "lora": (1e-2,), "loramoe": (1e-2,)},
}
# More steps learn as much at a lower rate. At the tiny scale those are the two lowest. At the real one these teach next
# to nothing, and the third is the best in one epoch.
LONGER_RATES: Mapping[str, slice] = {"real": slice(1, 3)}
# The recipe that is best has the budget of the arms: each of their four rates. At the tiny scale half the lowest too,
# as it takes twice the steps, and as what keeps the goal's 99 % is found among the lowest.
LOWER_RATES: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "tiny": {"full": (1.5e-4,), "lora": (5e-4,), "loramoe": (5e-4,)},
}
# Results that tell no precision were made when every scale had but one.
FIRST_PRECISION: Mapping[str, str] = {"tiny": "float32", "real": "bfloat16"}


def base_run(scale: Scale) -> Settings:
    """The base model, as it is."""
    return Settings(scale.name, "base", 0.0, 0, 0)


def frontier(scale: Scale, seeds: Sequence[int] = SEEDS) -> list[Settings]:
    """Every arm at every learning rate, seed by seed, so that an interrupted grid is as even as it can be."""
    return [
        Settings(scale.name, name, rate, scale.rows, seed)
        for seed in seeds
        for name, arm in ARMS.items()
        if arm.kind != "base"
        for rate in (*scale.learning_rates[arm.kind], *MORE_RATES.get(scale.name, {}).get(arm.kind, ()))
    ]


def rows_study(scale: Scale, seeds: Sequence[int] = SEEDS) -> list[Settings]:
    """Some arms on more and fewer rows, at one learning rate of each: `ROWS_RATE`, where it names none the second."""
    rate = ROWS_RATE.get(scale.name, 1)
    return [
        Settings(scale.name, name, scale.learning_rates[ARMS[name].kind][rate], rows, seed)
        for seed in seeds
        for rows in (*scale.row_counts, *MORE_ROWS.get(scale.name, ()))
        for name in ROWS_ARMS
    ]


def controls(scale: Scale, seeds: Sequence[int] = SEEDS) -> list[Settings]:
    """What an arm wins by other things than routing: `CONTROLS`, at the two middle learning rates."""
    return _variants(scale, CONTROLS, seeds)


def ablations(scale: Scale, seeds: Sequence[int] = RECIPE_SEEDS) -> list[Settings]:
    """An arm with one value changed, at the two middle learning rates, with the arm itself beside it."""
    changes = [
        (arm, change)
        for arm, keys in ABLATIONS.items()
        for change in ({}, *({key: value} for key, values in keys.items() for value in values))
    ]
    return _variants(scale, changes, seeds)


def recipes(scale: Scale, seeds: Sequence[int] = RECIPE_SEEDS) -> list[Settings]:
    """`RECIPES` with the first seed, `FINALISTS` with the others too, at the learning rates of the ablations."""
    return [*_variants(scale, RECIPES, seeds[:1]), *_variants(scale, FINALISTS, seeds[1:])]


def larger(scale: Scale, seeds: Sequence[int] = RECIPE_SEEDS[:1]) -> list[Settings]:
    """`LARGER`, at the learning rates of the ablations."""
    return _variants(scale, LARGER, seeds)


def longer(scale: Scale, seeds: Sequence[int] = RECIPE_SEEDS[:1]) -> list[Settings]:
    """`LONGER`, at the two learning rates of `LONGER_RATES`; where it names none, at the two lowest."""
    return _variants(scale, LONGER, seeds, LONGER_RATES.get(scale.name, slice(0, 2)))


def best(scale: Scale, seeds: Sequence[int] = SEEDS) -> list[Settings]:
    """`BEST`, at every learning rate of the arms, and at those of `LOWER_RATES`."""
    return [
        Settings(scale.name, arm, rate, scale.rows, seed, change)
        for seed in seeds
        for arm, change in BEST
        for kind in [ARMS[arm].kind]
        for rate in (*LOWER_RATES.get(scale.name, {}).get(kind, ()), *scale.learning_rates[kind])
    ]


def _variants(
    scale: Scale,
    changes: Sequence[tuple[str, dict[str, Any]]],
    seeds: Sequence[int],
    rates: slice = slice(1, 3),  # the two in the middle
) -> list[Settings]:
    return [
        Settings(scale.name, arm, rate, scale.rows, seed, change)
        for seed in seeds
        for arm, change in changes
        for rate in scale.learning_rates[ARMS[arm].kind][rates]
    ]


STUDIES = {
    "frontier": frontier,
    "rows": rows_study,
    "controls": controls,
    "recipes": recipes,
    "ablations": ablations,
    "larger": larger,
    "longer": longer,
    "best": best,
}


def work_through(settings: Iterable[Settings], scale: Scale, folder: Path, workers: int) -> None:
    """Makes those runs whose file is not there yet.

    Args:
        settings: The runs.
        scale: Their scale.
        folder: Where the files go.
        workers: How many runs at a time, each on one thread.

    Raises:
        ValueError: If files that are there were made by other code, of another base model, or on other items.
        RuntimeError: If runs failed; all others are done before.
    """
    wanted = {one.name: one for one in settings}
    provenance = provenance_of(scale)
    check_alike(folder, provenance)
    todo = [one for name, one in wanted.items() if not (folder / f"{name}.json").is_file()]
    print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are there")
    failed: dict[str, BaseException] = {}
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker)
    try:
        futures = {pool.submit(_run_and_write, one, scale, folder, provenance): one.name for one in todo}
        for future in tqdm(as_completed(futures), total=len(todo), desc="runs", unit="run"):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise RuntimeError(
                    "a process that made runs was killed. Start again: the written ones stay."
                ) from error
            if error is not None:
                failed[futures[future]] = error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        told = "; ".join(f"{name}: {type(error).__name__}: {error}" for name, error in failed.items())
        raise RuntimeError(f"{len(failed)} of {len(todo)} runs failed, and the others are written. {told}")


def check_alike(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Refuses a folder of results to which runs of today cannot be added.

    Args:
        folder: The folder.
        provenance: What `provenance_of` told today.

    Raises:
        ValueError: If a file was made by other code, of another base model, on other items, in another precision, or of
            another recipe.
    """
    for file in sorted(folder.glob("*-seed*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        settings = result["settings"]
        made = {"precision": FIRST_PRECISION.get(settings["scale"], provenance["precision"]), **result["provenance"]}
        same = {name: made[name] == provenance[name] for name in ("base", "items", "precision")}
        same["code"] = earliest(made["code"]) == earliest(provenance["code"])
        recipe = {**plain(Recipe()), **result["recipe"]}  # a value that there was not yet was what is now its default
        same["recipe"] = recipe == plain(recipe_of(settings["arm"], settings["changes"]))
        changed = [name for name, is_same in same.items() if not is_same]
        if changed:
            raise ValueError(
                f"{file} was made with another {', '.join(changed)} than there is now. Remove it, and all like it, or "
                "say --out FOLDER."
            )


def _start_worker() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # the grid has one
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next run for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_and_write(settings: Settings, scale: Scale, folder: Path, provenance: dict[str, Any]) -> None:
    file = folder / f"{settings.name}.json"
    if not file.is_file():  # another grid may have made it meanwhile
        repeated = gone_through(scale, recipe_of(settings.arm, settings.changes).epochs)
        write_json(file, run(settings, repeated, provenance, progress=False))
