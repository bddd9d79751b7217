"""How everything here is timed, weighed and written down.

**Paired.** All sides of a comparison run in every round, in an order that rotates from round to round, and what is
reported are medians over rounds of ratios or differences *within* a round. A machine that slows down for a second, or
for good, slows every side of that round; it does not make one side look better than another.

**Added cost.** A mixture beside a linear costs little next to the linear, so that the ratio of two whole times hides
what differs. `added_ratio` compares what two sides add to the frozen base.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import torch
from tqdm import tqdm

import loramoe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
PACKAGES = ("torch", "transformers", "peft")


def run_alone(main: Callable[..., None]) -> None:
    """What `python -m benchmarks.<module>` does: read the two flags, and measure.

    Args:
        main: The module's `main(device, quick)`.
    """
    parser = argparse.ArgumentParser(description=inspect.getmodule(main).__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that the code runs; measures nothing")
    arguments = parser.parse_args()
    main(arguments.device, arguments.quick)


def device() -> torch.device:
    """The device that is measured where nobody names one: the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def start(name: str | None = None) -> torch.device:
    """Get a process ready to measure: the device, the seed, and one thread for each physical core.

    Args:
        name: "cpu" or "cuda"; None takes what is there.

    Returns:
        The device.
    """
    torch.set_num_threads(physical_cores())
    torch.manual_seed(0)
    return torch.device(name) if name else device()


def physical_cores() -> int:
    """Number of physical cores that this process may use; a second thread on a core adds noise, and no arithmetic."""
    physical = psutil.cpu_count(logical=False) or 1
    return min(physical, len(os.sched_getaffinity(0))) if platform.system() == "Linux" else physical


# --- time -------------------------------------------------------------------------------------------------------------


def paired(
    sides: dict[str, Callable[[], None]], pairs: int = 9, warmup: int = 2, name: str = "rounds"
) -> dict[str, list[float]]:
    """Time several sides of one comparison, all of them in every round.

    The order rotates by one from round to round, so that no side always runs in the wake of the same other. The device
    is synchronised before and after each call; garbage is collected outside of what is timed.

    Args:
        sides: By name, what to run once.
        pairs: Number of rounds that count.
        warmup: Number of rounds before them that do not.
        name: What the progress bar calls them.

    Returns:
        For each side its seconds, one figure a round: entries of one index belong together.
    """
    names = list(sides)
    seconds: dict[str, list[float]] = {side: [] for side in names}
    gc.collect()
    gc.freeze()  # what is alive now stays; looking through it in every round would take longer than the work
    try:
        for index in tqdm(range(warmup + pairs), desc=name, unit="round", leave=False):
            turn = index % len(names)
            for side in names[turn:] + names[:turn]:
                taken = _seconds(sides[side])
                if index >= warmup:
                    seconds[side].append(taken)
    finally:
        gc.unfreeze()
    return seconds


def _seconds(run: Callable[[], None]) -> float:
    gc.collect()
    gc.disable()
    try:
        _synchronise()
        began = perf_counter()
        run()
        _synchronise()
        return perf_counter() - began
    finally:
        gc.enable()


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The middle of some measurements, and the span of the three fifths around it.

    Args:
        values: The measurements, at least one.

    Returns:
        p20, p50 and p80, interpolated linearly.
    """
    return {f"p{percent}": float(np.percentile(values, percent)) for percent in (20, 50, 80)}


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """`a / b`, round by round.

    Args:
        a: Seconds of one side.
        b: Seconds of the other in the same rounds.

    Returns:
        One ratio a round.
    """
    return [x / y for x, y in zip(a, b, strict=True)]


def added(side: Sequence[float], base: Sequence[float]) -> list[float]:
    """What a side costs beyond the frozen base, round by round.

    Args:
        side: Seconds of the side.
        base: Seconds of the frozen base in the same rounds.

    Returns:
        One difference a round; noise can make single ones negative.
    """
    return [x - y for x, y in zip(side, base, strict=True)]


def added_ratio(side: Sequence[float], other: Sequence[float], base: Sequence[float]) -> float:
    """Added cost of one side as a share of another's: `median(side − base) / median(other − base)`.

    Differences are taken within each round, and medians over the rounds before the division: a median of ratios of
    small noisy differences would be ruled by the rounds whose denominator happens to come near zero.

    Args:
        side: Seconds of the side.
        other: Seconds of the side that it is compared with.
        base: Seconds of the frozen base, all in the same rounds.

    Returns:
        The ratio; NaN if the other side adds nothing that could be measured.
    """
    of_other = median(added(other, base))
    return median(added(side, base)) / of_other if of_other > 0 else float("nan")


# --- writing it down --------------------------------------------------------------------------------------------------


def write_result(name: str, device: str, body: dict[str, Any]) -> Path:
    """Write what was measured, with all that one must know to believe it, to `results/<name>.<device>.json`.

    A body with `"quick": True` goes to `results/quick/` instead: a quick run shows that the code runs, and says nothing
    about speed, so that it must not take the place of a measurement.

    Args:
        name: Name of the benchmark.
        device: "cpu" or "cuda".
        body: What was measured.

    Returns:
        The file.
    """
    folder = RESULTS / "quick" if body.get("quick") else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.{device}.json"
    record = {"name": name, "device": device, "date": date.today().isoformat(), **_code(), "hardware": hardware(device)}
    file.write_text(json.dumps(record | body, indent=1) + "\n", encoding="utf-8")
    return file


def _code() -> dict[str, Any]:
    versions = {"python": platform.python_version(), "loramoe": loramoe.__version__}
    versions |= {package: version(package) for package in PACKAGES}
    versions["torch"] = torch.__version__  # with its build, such as +cu130, which a package's own version may lack
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(
            git(
                "status",
                "--porcelain",
                "--untracked-files=no",
                "--",
                ".",
                ":!benchmarks/results",
                ":!docs",
                ":!README*",
            )
        ),
        "versions": versions,
    }


def git(*arguments: str) -> str:
    """What git says in this checkout, "unknown" where it cannot be asked."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def hardware(device: str) -> dict[str, Any]:
    """What a measurement was made on.

    Args:
        device: "cpu" or "cuda".

    Returns:
        Name of the GPU and its memory; or the CPU's model, its physical cores and the threads in use.
    """
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        memory = round(properties.total_memory / 2**30)
        return {"gpu": properties.name, "memory_GiB": memory, "cuda": torch.version.cuda}
    return {"cpu": _cpu_model(), "cores": physical_cores(), "threads": torch.get_num_threads()}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
