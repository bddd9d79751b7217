"""How memory is counted: tensors only, exactly, and the same at every repetition.

`saved_bytes` is what autograd keeps from forward to backward, `peak_bytes` what a step needs at its worst moment beyond
what was there before it.
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


def saved_bytes(forward: Callable[[], object], owned: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps from a forward for its backward.

    Every tensor that goes through `save_for_backward`, ours or torch's own, passes the hooks of autograd. A storage
    counts once, whole, however many tensors look at it; parameters and buffers are there anyway and do not count.

    Args:
        forward: Runs the forward; its result is kept until all has been counted.
        owned: Parameters and buffers.

    Returns:
        The bytes.
    """
    sizes: dict[int, int] = {}
    owned_storages = {tensor.untyped_storage().data_ptr() for tensor in owned}
    alive: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned_storages:
            alive.append(tensor)
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        _result = forward()
    return sum(sizes.values())


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Most bytes of tensors alive at one moment of a step, beyond those that were alive before it.

    On a GPU this is what the allocator of torch counts. On the CPU torch keeps no such count, so that the allocations
    and releases that its profiler records are added up: the same figure, exact, where the resident size of the process
    would depend on what malloc has kept from earlier. Scratch memory inside a library (oneDNN, MKL) is in neither.

    Args:
        step: Runs once; run it before, so that the state of an optimiser exists. What it releases of what was there
            before counts on a GPU alone, so that it had better not.
        device: Where.

    Returns:
        The bytes.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    return _peak(_changes(recorded))


def _changes(recorded: profile) -> list[int]:
    """Bytes of each allocation (positive) and release (negative), in order of time, from the trace's own file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    memory = [event for event in events if event["name"] == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(memory, key=lambda event: event["ts"])]


def _peak(changes: Iterable[int]) -> int:
    alive = peak = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    return peak
