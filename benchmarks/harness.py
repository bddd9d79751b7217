"""Timing, memory and result files of all benchmarks.

All sides of a comparison run in every round, in rotating order. Tables report medians over rounds of ratios within a
round, so a machine that slows down for a while slows all sides alike.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

import loramoe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"


def start(device: str | None = None) -> torch.device:
    """Set the seed and one thread per physical core; return the device (default: the GPU if there is one)."""
    available = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1
    torch.set_num_threads(min(psutil.cpu_count(logical=False) or 1, available))
    torch.manual_seed(0)
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def paired(
    sides: dict[str, Callable[[], object]], pairs: int = 9, warmup: int = 2, name: str = "rounds"
) -> dict[str, list[float]]:
    """Time several sides, all of them in every round.

    Args:
        sides: What to run once, by name.
        pairs: Rounds that count.
        warmup: Rounds before them.
        name: Label of the progress bar.

    Returns:
        Seconds of each side, one number per round; equal indices belong to one round.
    """
    names = list(sides)
    seconds: dict[str, list[float]] = {side: [] for side in names}
    gc.collect()
    gc.freeze()  # later collections skip what is alive now
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


def _seconds(run: Callable[[], object]) -> float:
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    gc.collect()
    gc.disable()
    try:
        synchronise()
        began = perf_counter()
        run()
        synchronise()
        return perf_counter() - began
    finally:
        gc.enable()


def saved_bytes(forward: Callable[[], object], owned: Iterable[Tensor] = ()) -> int:
    """Count the bytes that autograd keeps from a forward pass for its backward pass.

    Each storage counts once and whole. The storages of `owned` (parameters and buffers) do not count.
    """
    sizes: dict[int, int] = {}
    ignored = {tensor.untyped_storage().data_ptr() for tensor in owned}
    alive: list[Tensor] = []  # keeps the addresses unique

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ignored:
            alive.append(tensor)
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        _result = forward()
    return sum(sizes.values())


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Count the most bytes of tensors alive at one moment of a step, beyond those alive before it.

    A GPU's number is that of torch's allocator. The CPU's is the sum of the allocations that torch's profiler records.
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    alive = peak = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        alive += event["args"]["Bytes"]
        peak = max(peak, alive)
    return peak


def write_result(name: str, device: str, body: dict[str, Any]) -> Path:
    """Write `results/<name>.<device>.json` with commit, date, versions and hardware.

    A body with `"quick": True` goes to `results/quick/`, so that it never replaces a measurement.
    """
    folder = RESULTS / "quick" if body.get("quick") else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    versions = {"python": platform.python_version(), "loramoe": loramoe.__version__, "torch": torch.__version__}
    versions |= {package: version(package) for package in ("transformers", "peft")}
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "loramoe", "benchmarks/*.py")
    record = {"name": name, "device": device, "date": date.today().isoformat(), "commit": git("rev-parse", "HEAD")}
    record |= {"dirty": bool(changed), "versions": versions, "hardware": hardware(device)}
    file = folder / f"{name}.{device}.json"
    file.write_text(json.dumps(record | body, indent=1) + "\n", encoding="utf-8")
    return file


def load(name: str, device: str) -> dict[str, Any] | None:
    """Read a benchmark's newest result; None if there is none."""
    file = RESULTS / f"{name}.{device}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def git(*arguments: str) -> str:
    """Return the output of a git command in this checkout, or "unknown"."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def hardware(device: str) -> dict[str, Any]:
    """Return the GPU's name and memory, or the CPU's model, physical cores and threads in use."""
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        memory = round(properties.total_memory / 2**30)
        return {"gpu": properties.name, "memory_GiB": memory, "cuda": torch.version.cuda}
    info, threads = Path("/proc/cpuinfo"), torch.get_num_threads()
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.machine(), "cores": threads, "threads": threads}
