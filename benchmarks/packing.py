"""Rows packed with whole samples against padded rows: real tokens per second of a training step.

Both sides train the same model on the same samples. First a padded and a packed batch must have the same loss. Lengths
are log-normal: evenly spaced quantiles, shuffled.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from benchmarks.harness import paired
from benchmarks.sides import LlamaShape, Mixture, model_side
from benchmarks.step import training_step
from loramoe.data import PackedCollator, SftCollator, pack
from loramoe.training.model import enable_varlen_attention

MEDIAN, SIGMA = 60, 0.7  # of the log-normal lengths in tokens: two thirds are within a factor of 2 of the median
ROWS, STEPS = 16, 4  # rows of a padded step, padded steps of a round
LONGEST = 512  # tokens of a sample
ROOM = 1024  # tokens of a filled row: max_seq_length of the launcher
SHAPES = {
    "quick": LlamaShape(2, 32, 48, 2, 64, LONGEST),
    "cpu": LlamaShape(8, 512, 1376, 8, 4096, LONGEST),
    "cuda": LlamaShape(4, 4096, 11008, 32, 32000, 4096),
}


def draw_samples(count: int, vocabulary: int) -> list[dict[str, Any]]:
    """Return samples of random tokens with log-normal lengths, all tokens labels, of both task types in turn."""
    normal = NormalDist(math.log(MEDIAN), SIGMA)
    lengths = np.exp([normal.inv_cdf((index + 0.5) / count) for index in range(count)]).clip(max=LONGEST).round()
    ids = [torch.randint(vocabulary, (int(n),)).tolist() for n in np.random.default_rng(0).permutation(lengths)]
    return [{"input_ids": tokens, "labels": tokens, "task_types": index % 2} for index, tokens in enumerate(ids)]


def batches(side: str, samples: list[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """Return the batches of one round of a side."""
    if side == "packed":
        sizes = np.array([len(sample["input_ids"]) for sample in samples])
        rows = [PackedCollator()([samples[index] for index in row]) for row in pack(sizes, ROOM, seed=0)]
    else:
        rows = [SftCollator(0)(samples[first : first + ROWS]) for first in range(0, len(samples), ROWS)]
    return [on(device, row) for row in rows]


def on(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    """Move a batch to a device, for a model without a cache."""
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    return moved | {"use_cache": False}


def models(shape: LlamaShape, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return the model of each side: equal weights, and for packed rows the attention that a run chooses."""
    base = shape.build(device, dtype)
    padded, packed = (model_side("fused", base, Mixture()) for _ in range(2))
    packed.load_state_dict(padded.state_dict())
    enable_varlen_attention(packed.get_base_model())
    return {"padded": padded, "packed": packed}


def check(sides: dict[str, Any], samples: list[dict[str, Any]], device: torch.device) -> float:
    """Return the relative difference between the losses of a padded and a packed batch, constraint included.

    Raises:
        AssertionError: If it exceeds 1e-5.
    """
    with torch.no_grad():
        padded = float(sides["padded"](**on(device, SftCollator(0)(samples))).loss)
        packed = float(sides["packed"](**on(device, PackedCollator()(samples))).loss)
    error = abs(packed - padded) / abs(padded)
    if not error <= 1e-5:
        raise AssertionError(f"a packed batch has the loss {packed}, the padded one {padded}: not timed.")
    return error


def run(device: torch.device, quick: bool) -> dict[str, Any]:
    """Compare both sides."""
    shape = SHAPES["quick" if quick else device.type]
    samples = draw_samples(ROWS * STEPS, shape.vocabulary)
    error = check(models(replace(shape, layers=2), device, torch.float32), samples[:ROWS], device)
    sides = models(shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    made = {side: batches(side, samples, device) for side in sides}
    tokens = sum(len(sample["input_ids"]) for sample in samples)
    computed = {side: sum(batch["input_ids"].numel() for batch in made[side]) for side in made}
    runs = {side: training_step(sides[side], made[side]) for side in sides}
    setting = {
        "lengths": f"log-normal, median {MEDIAN}, sigma {SIGMA}",
        "shape": asdict(shape),
        "tokens": tokens,
        "relative_error": error,
        "padding": {side: 1 - tokens / computed[side] for side in sides},
        "seconds": paired(runs, 2 if quick else 9, warmup=1, name="packing"),
    }
    return {"mixture": asdict(Mixture()), "settings": [setting]}
