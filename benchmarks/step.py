"""A whole training step of a Llama: forward pass, constraint, backward pass, AdamW. Tokens per second and peak memory.

Ours trains with the constraint; the naive loop trains without. The compiled settings compare ours with PEFT's
LoRA, both under torch.compile.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import paired, peak_bytes
from benchmarks.sides import OURS, LlamaShape, Mixture, model_side, trained

SIZES = {  # model, rows, tokens of a row, dtype
    "quick": (LlamaShape(2, 32, 48, 2, 64, 32), 2, 8, "float32"),
    "cpu": (LlamaShape(8, 512, 1376, 8, 4096, 256), 4, 256, "float32"),
    "cpu_compiled": (LlamaShape(2, 512, 1376, 8, 4096, 256), 4, 256, "float32"),  # eight layers compile for minutes
    "cpu_bfloat16": (LlamaShape(2, 256, 688, 4, 1024, 128), 2, 128, "bfloat16"),  # small: many CPUs emulate it
    "cuda": (LlamaShape(16, 4096, 11008, 32, 32000, 4096), 4, 4096, "bfloat16"),  # half of Llama-2-7B
    "cuda_compiled": (LlamaShape(16, 4096, 11008, 32, 32000, 4096), 4, 4096, "bfloat16"),
}
SETTINGS = (("base", "lora", "naive", *OURS), 0.05), (("base", "lora", *OURS), 0.0)  # the slow sides run once
COMPILED = ("lora", "fused")


def training_step(model: Any, batches: list[dict[str, Any]]) -> Callable[[], None]:
    """Return a function that runs one step on each batch."""
    weights = trained(model)
    optimiser = torch.optim.AdamW(weights, lr=1e-4) if weights else None

    def run() -> None:
        for batch in batches:
            model(**batch).loss.backward()
            if optimiser is not None:
                optimiser.step()
                optimiser.zero_grad()

    return run


def build(name: str, model: Any, ids: Tensor, compiled: bool, dropout: float) -> Callable[[], None] | None:
    """Return the step of a side, after a first run of it; None if the GPU's memory is too small."""
    batch: dict[str, Any] = {"input_ids": ids, "labels": ids, "use_cache": False}
    if name in OURS:
        batch["task_types"] = torch.arange(len(ids), device=ids.device) % 2
    if compiled:
        torch._dynamo.reset()
        eager, model = model, torch.compile(model)
        if dropout == 0:
            torch.testing.assert_close(model(**batch).loss, eager(**batch).loss, rtol=1e-4, atol=1e-5)
    step: Callable[[], None] | None = training_step(model, [batch])
    try:
        step()
    except torch.OutOfMemoryError:
        step = None
    gc.collect()
    return step


def measure(size: str, dropout: float, compiled: bool, sides: tuple[str, ...], device: torch.device) -> dict[str, Any]:
    """Compare the sides of one setting."""
    shape, rows, length, dtype = SIZES[size]
    base: nn.Module = shape.build(device, getattr(torch, dtype))
    ids = torch.randint(shape.vocabulary, (rows, length), device=device)
    models = {name: model_side(name, base, Mixture(dropout=dropout)) for name in sides}
    built = {name: build(name, model, ids, compiled, dropout) for name, model in models.items()}
    steps = {name: step for name, step in built.items() if step is not None}
    pairs = 2 if size == "quick" else 15
    setting = {"shape": asdict(shape), "rows": rows, "length": length, "dtype": dtype}
    return setting | {
        "dropout": dropout,
        "compiled": compiled,
        "out_of_memory": [name for name in sides if name not in steps],
        "peak_bytes": {name: peak_bytes(step, device) for name, step in steps.items()},
        "seconds": paired(steps, pairs, warmup=1, name=f"training step, {dtype}, dropout {dropout}"),
    }


def run(device: torch.device, quick: bool) -> dict[str, Any]:
    """Measure all settings; a quick run compiles nothing."""
    size = "quick" if quick else device.type
    todo = [(size, dropout, False, sides) for sides, dropout in SETTINGS]
    if not quick:
        todo += [(f"{size}_compiled", dropout, True, COMPILED) for _, dropout in SETTINGS]
    if size == "cpu":
        todo += [("cpu_bfloat16", dropout, False, sides) for sides, dropout in SETTINGS]
    return {"mixture": asdict(Mixture()), "settings": [measure(*setting, device) for setting in todo]}
