"""The runs of each study, and the work through them: several at a time, and each once, however often it is interrupted.

Studies share runs: the main grid's are also points of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from experiments.knowledge_forgetting.arms import ARMS, ATTENTION, MLP
from experiments.knowledge_forgetting.run import Settings, run
from experiments.knowledge_forgetting.scale import Scale
from loramoe.training.files import write_json

SEEDS = (0, 1, 2)
ROWS_ARMS = ("full", "lora_mlp", "loramoe_free", "loramoe_paper")

# One value at a time. What shapes the experts and the constraint is changed in the paper's recipe; what may be better
# than it, each by itself, in the recipe without the constraint; strength and schedule in the other direction too.
ABLATIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "loramoe_paper": {
        "lora_nums": (2, 4, 16),
        "r": (1, 2, 8, 16),
        "blc_weight": (0.01, 1.0, 10.0),
        "blc_alpha": (0.0, 0.5, 0.8),
        "targets": (("down_proj",), ("gate_proj", "up_proj"), (*ATTENTION, *MLP)),
    },
    "loramoe_match": {"blc_weight": (1.0, 10.0), "blc_alpha": (0.5, 0.8), "blc_warmup": (0.5,)},
    "loramoe_free": {
        "zero_experts": (4,),
        "router_scale": (0.0, 4.0),
        "router_rate": (0.1, 10.0),
        "rate_B": (0.25, 4.0),
        "lora_alpha": (8.0, 128.0),
        "lora_dropout": (0.0, 0.2),
        "use_rslora": (True,),
    },
}


def frontier(scale: Scale, seeds: Sequence[int] = SEEDS) -> list[Settings]:
    """Every arm at every learning rate, seed by seed, so that an interrupted grid is as even as it can be."""
    base = [Settings(scale.name, "base", 0.0, 0, 0)]
    return base + [
        Settings(scale.name, name, rate, scale.rows, seed)
        for seed in seeds
        for name, arm in ARMS.items()
        if arm.kind != "base"
        for rate in scale.learning_rates[arm.kind]
    ]


def rows_study(scale: Scale, seeds: Sequence[int] = SEEDS) -> list[Settings]:
    """Some arms on more and fewer rows, at the two middle learning rates of each."""
    return [
        Settings(scale.name, name, rate, rows, seed)
        for seed in seeds
        for rows in scale.row_counts
        for name in ROWS_ARMS
        for rate in scale.learning_rates[ARMS[name].kind][1:3]
    ]


def ablations(scale: Scale, seeds: Sequence[int] = SEEDS) -> list[Settings]:
    """An arm with one value changed, at the two middle learning rates."""
    return [
        Settings(scale.name, arm, rate, scale.rows, seed, {key: value})
        for seed in seeds
        for arm, changes in ABLATIONS.items()
        for key, values in changes.items()
        for value in values
        for rate in scale.learning_rates["loramoe"][1:3]
    ]


STUDIES = {"frontier": frontier, "rows": rows_study, "ablations": ablations}


def work_through(settings: Iterable[Settings], scale: Scale, folder: Path, workers: int) -> None:
    """Makes those runs whose file is not there yet.

    Args:
        settings: The runs.
        scale: Their scale.
        folder: Where the files go.
        workers: How many runs at a time, each on one thread.

    Raises:
        RuntimeError: If runs failed; all others are done before.
    """
    wanted = {one.name: one for one in settings}
    todo = [one for name, one in wanted.items() if not (folder / f"{name}.json").is_file()]
    print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are there")
    failed: dict[str, BaseException] = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread) as pool:
        futures = {pool.submit(_run_and_write, one, scale, folder): one for one in todo}
        for future in tqdm(as_completed(futures), total=len(todo), desc="runs", unit="run"):
            if future.exception() is not None:
                failed[futures[future].name] = future.exception()
    if failed:
        told = "; ".join(f"{name}: {type(error).__name__}: {error}" for name, error in failed.items())
        raise RuntimeError(f"{len(failed)} of {len(todo)} runs failed, and the others are written. {told}")


def _one_thread() -> None:
    logging.disable_progress_bar()  # the grid has one
    torch.set_num_threads(1)


def _run_and_write(settings: Settings, scale: Scale, folder: Path) -> None:
    write_json(folder / f"{settings.name}.json", run(settings, scale, progress=False))
