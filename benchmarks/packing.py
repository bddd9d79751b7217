"""Rows packed against rows padded: real tokens per second of a training step, prompt and answer, padding not counted.

All sides train the same model on the same rows, once: `padded` as `SftCollator` makes batches, `grouped` too, but in
the order of the Trainer's length-grouped sampler, and `packed` in rows that are filled with whole samples. Before
anything is timed, a padded and a packed batch of the same rows must have the same loss.

Two distributions of lengths: that of the rows in data/tiny_data, and a log-normal one, the usual shape of lengths of
human writing. Its median is 60 tokens and its sigma 0.7, so that two thirds of the rows lie within a factor of 2 of the
median, and the longest of 16 is about 3.5 times as long: question and answer pairs, not documents. From either, lengths
are read at evenly spaced shares and shuffled, so that the few rows of a round are padded like all rows.

A step's time is nearly proportional to the tokens that it computes, so what padding leaves is the most that packing can
win: `bound`, padded tokens over real ones.

    python -m benchmarks.packing [--device cpu|cuda] [--quick]
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import asdict
from statistics import NormalDist, median
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer
from transformers.trainer_pt_utils import get_length_grouped_indices

from benchmarks.harness import ROOT, paired, quantiles, ratios, run_alone, start, write_result
from benchmarks.sides import LlamaShape, Mixture, model_side, trained
from loramoe.data import PackedCollator, SftCollator, pack, tokenise_dataset
from loramoe.training.model import enable_varlen_attention

MEDIAN, SIGMA, LONGEST = 60, 0.7, 512  # tokens of the log-normal lengths
ROOM = 1024  # tokens of a filled row: the launcher's max_seq_length
LLAMA_2_7B = LlamaShape(layers=4, hidden=4096, intermediate=11008, heads=32, vocabulary=32000, positions=4096)
ON_CPU = LlamaShape(layers=8, hidden=512, intermediate=1376, heads=8, vocabulary=4096, positions=LONGEST)
QUICK = LlamaShape(layers=2, hidden=32, intermediate=48, heads=2, vocabulary=64, positions=LONGEST)
SIDES = ("padded", "grouped", "packed")

Row = dict[str, Any]
Batch = dict[str, Any]


def tiny_data_lengths(count: int) -> list[int]:
    """Lengths of rows of data/tiny_data/train."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny_llama")
    rows, _ = tokenise_dataset(ROOT / "data/tiny_data/train", tokenizer, max_seq_length=256)
    return shuffled(np.quantile([len(ids) for ids in rows["input_ids"]], middles(count)))


def log_normal_lengths(count: int) -> list[int]:
    """Log-normal lengths, cut at LONGEST as max_seq_length would."""
    normal = NormalDist(math.log(MEDIAN), SIGMA)
    return shuffled(np.exp([normal.inv_cdf(share) for share in middles(count)]).clip(max=LONGEST))


def middles(count: int) -> list[float]:
    """Shares at which to read a distribution, evenly spaced: few lengths, whose mean and spread are those of all."""
    return [(index + 0.5) / count for index in range(count)]


def shuffled(lengths: np.ndarray[Any, Any]) -> list[int]:
    """Lengths in whole tokens, in random order, as the Trainer would draw them."""
    return [int(length) for length in np.random.default_rng(0).permutation(lengths.round())]


DISTRIBUTIONS: dict[str, Callable[[int], list[int]]] = {
    "tiny_data": tiny_data_lengths,
    f"log-normal, median {MEDIAN}, sigma {SIGMA}": log_normal_lengths,
}
TINY_DATA, LOG_NORMAL = DISTRIBUTIONS
# Lengths, rows of a padded step, padded steps of a round: the launcher's 16 rows.
SETTINGS = ((TINY_DATA, 16, 8), (LOG_NORMAL, 16, 4))


def rows_of(lengths: list[int], vocabulary: int) -> list[Row]:
    """Rows of random tokens, all of them learnt: of both task types in turn."""
    ids = [torch.randint(vocabulary, (length,)).tolist() for length in lengths]
    return [{"input_ids": row, "labels": row, "task_types": index % 2} for index, row in enumerate(ids)]


def batches(side: str, rows: list[Row], count: int, device: torch.device) -> list[Batch]:
    """The batches that a side trains on.

    Args:
        side: One of SIDES.
        rows: All rows.
        count: How many make a batch.
        device: Where the batches go.

    Returns:
        One batch a step.
    """
    if side == "grouped":
        lengths = [len(row["input_ids"]) for row in rows]
        order = get_length_grouped_indices(lengths, count, mega_batch_mult=len(rows) // count)
        rows = [rows[index] for index in order]
    if side == "packed":
        filled = pack(np.array([len(row["input_ids"]) for row in rows]), ROOM, seed=0)
        return [on(device, PackedCollator()([rows[index] for index in row])) for row in filled]
    return [on(device, SftCollator(0)(rows[first : first + count])) for first in range(0, len(rows), count)]


def on(device: torch.device, batch: Batch) -> Batch:
    """A batch on a device, for a model without a cache."""
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    return moved | {"use_cache": False}


def models(shape: LlamaShape, device: torch.device, dtype: torch.dtype, attention: str) -> dict[str, nn.Module]:
    """The model that each side trains: the same weights, and for packed rows the attention that a run would choose.

    Args:
        shape: Its size.
        device: Where it is.
        dtype: Of its weights.
        attention: "sdpa" or "flash_attention_2".

    Returns:
        An adapted model for each side.
    """
    base = shape.build(device, dtype)
    base.set_attn_implementation(attention)
    padded = model_side("fused", base, Mixture())
    packed = model_side("fused", base, Mixture())
    packed.load_state_dict(padded.state_dict())  # each draws its own B
    enable_varlen_attention(packed.get_base_model())
    return {"padded": padded, "grouped": padded, "packed": packed}


def check(sides: dict[str, nn.Module], rows: list[Row], device: torch.device, tolerance: float) -> float:
    """Refuse to time batches that do not have the same loss, constraint included.

    Args:
        sides: What `models` returned.
        rows: The rows of a batch.
        device: Where the models are.
        tolerance: Largest relative difference.

    Returns:
        The relative difference of the losses.

    Raises:
        AssertionError: If it is larger.
    """
    with torch.no_grad():
        padded = float(sides["padded"](**on(device, SftCollator(0)(rows))).loss)
        packed = float(sides["packed"](**on(device, PackedCollator()(rows))).loss)
    error = abs(packed - padded) / abs(padded)
    if not error <= tolerance:
        raise AssertionError(
            f"a packed batch has the loss {packed}, a padded one of the same rows {padded}, which is off by "
            f"{error:.1e}, expected at most {tolerance:.0e}: not timed. Repair loramoe/training/model.py."
        )
    return error


def steps(model: nn.Module, made: list[Batch]) -> Callable[[], None]:
    """Training steps on some batches, ready to be repeated."""
    optimiser = torch.optim.AdamW(trained(model), lr=1e-4)

    def run() -> None:
        for batch in made:
            model(**batch).loss.backward()
            optimiser.step()
            optimiser.zero_grad()

    return run


def measure(name: str, count: int, number: int, shape: LlamaShape, device: torch.device, pairs: int) -> dict[str, Any]:
    """Compare the sides on one distribution of lengths.

    Args:
        name: One of DISTRIBUTIONS.
        count: Rows of a step.
        number: Steps of a round; a single one leaves nothing to group.
        shape: Size of the model.
        device: Where.
        pairs: Rounds.

    Returns:
        The setting, the share of padding on each side, seconds of every round, tokens per second and their ratios.
    """
    flash = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = rows_of(DISTRIBUTIONS[name](count * number), shape.vocabulary)
    small = models(LlamaShape(**{**asdict(shape), "layers": 2}), device, torch.float32, "sdpa")
    error = check(small, rows[:count], device, tolerance=1e-5)
    del small
    sides = models(shape, device, dtype, "flash_attention_2" if flash else "sdpa")
    check(sides, rows[:count], device, tolerance=1e-5 if dtype == torch.float32 else 2e-2)
    made = {side: batches(side, rows, count, device) for side in SIDES if number > 1 or side != "grouped"}
    tokens = sum(len(row["input_ids"]) for row in rows)
    seconds = paired({side: steps(sides[side], made[side]) for side in made}, pairs, warmup=1, name=name)
    computed = {side: sum(batch["input_ids"].numel() for batch in made[side]) for side in made}
    return {
        "lengths": name,
        **asdict(shape),
        "rows": count,
        "steps": number,
        "tokens": tokens,
        "longest": max(len(row["input_ids"]) for row in rows),
        "attention": {side: sides[side].config._attn_implementation for side in made},
        "dtype": str(dtype).removeprefix("torch."),
        "relative_error": error,
        "bound": computed["padded"] / tokens,
        "padding": {side: 1 - tokens / computed[side] for side in made},
        "seconds": seconds,
        **compare(seconds, tokens),
    }


def compare(seconds: dict[str, list[float]], tokens: int) -> dict[str, Any]:
    """Real tokens per second of each side, and these over the padded side's (quantiles over rounds).

    Args:
        seconds: Seconds of each side, `padded` among them, in the same rounds.
        tokens: Real tokens of a round, the same on all sides.

    Returns:
        `tokens_per_second` and `speed_over_padded`.
    """
    return {
        "tokens_per_second": {side: tokens / median(taken) for side, taken in seconds.items()},
        "speed_over_padded": {side: quantiles(ratios(seconds["padded"], taken)) for side, taken in seconds.items()},
    }


def main(device: str | None = None, quick: bool = False) -> None:
    """Measure, print a line for each side, and write `results/packing.<device>.json`.

    Args:
        device: "cpu" or "cuda"; None takes what is there.
        quick: Tiny sizes, to see that the code runs.
    """
    where = start(device)
    pairs = 2 if quick else 9
    shape = QUICK if quick else LLAMA_2_7B if where.type == "cuda" else ON_CPU
    measured = [measure(*setting, shape, where, pairs) for setting in SETTINGS]
    for one in measured:
        for side, speed in one["tokens_per_second"].items():
            print(
                f"{one['lengths']}, {one['rows']} rows a step, {side}: {speed:,.0f} real tokens/s, "
                f"{one['padding'][side]:.0%} padding, "
                f"{one['speed_over_padded'][side]['p50']:.2f} of padded"
            )
    body = {"quick": quick, "pairs": pairs, "mixture": asdict(Mixture()), "settings": measured}
    print(write_result("packing", where.type, body))


if __name__ == "__main__":
    run_alone(main)
