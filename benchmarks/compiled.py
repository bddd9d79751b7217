"""A training step under torch.compile: ours against PEFT's LoRA of as many parameters, each compiled, paired.

Compiled, the mixture is computed as in `loramoe.ops.eager`, of which inductor makes its own kernels. First both sides
must compute in the compiled step what they compute without.

    python -m benchmarks.compiled [--device cpu|cuda] [--quick]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import paired, quantiles, ratios, run_alone, start, write_result
from benchmarks.sides import LlamaShape, Mixture, model_side
from benchmarks.step import training_step

SIDES = ("lora", "fused")


def check(name: str, model: nn.Module, compiled: Any, ids: Tensor) -> None:
    """Raise AssertionError if the compiled model computes another loss."""
    batch: dict[str, Any] = {"input_ids": ids, "labels": ids, "use_cache": False}
    if name != "lora":
        batch["task_types"] = torch.arange(len(ids), device=ids.device) % 2
    torch.testing.assert_close(compiled(**batch).loss, model(**batch).loss, rtol=1e-4, atol=1e-5)


def measure(shape: LlamaShape, rows: int, length: int, dropout: float, device: torch.device) -> dict[str, Any]:
    """Time the compiled step of both sides in turn; return seconds of every round and the ratio of tokens/s to LoRA."""
    ids = torch.randint(shape.vocabulary, (rows, length), device=device)
    steps = {}
    for name in SIDES:
        torch._dynamo.reset()
        model = model_side(name, shape.build(device, torch.float32), Mixture(dropout=dropout)).train()
        compiled: Any = torch.compile(model)
        if dropout == 0:
            check(name, model, compiled, ids)
        steps[name] = training_step(name, compiled, ids)
        steps[name]()
    seconds = paired(steps, pairs=9, warmup=2, name=f"compiled step, dropout {dropout}")
    speed = quantiles(ratios(seconds["lora"], seconds["fused"]))
    print(f"compiled, dropout {dropout}: tokens/s of ours over LoRA's {speed['p50']:.3f}", flush=True)
    return {"rows": rows, "length": length, "dropout": dropout, "seconds": seconds, "speed_over_lora": speed}


def main(device: str | None = None, quick: bool = False) -> None:
    """Measure with dropout and without, and write the result."""
    where = start(device)
    shape, rows, length = LlamaShape(4, 512, 1376, 8, 4096, 256), 4, 256
    if quick:
        shape, rows, length = LlamaShape(2, 32, 48, 2, 64, 32), 2, 8
    settings = [measure(shape, rows, length, dropout, where) for dropout in (0.0, 0.05)]
    write_result("compiled", where.type, {"quick": quick, "settings": settings})


if __name__ == "__main__":
    run_alone(main)
