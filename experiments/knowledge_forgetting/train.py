"""The training loop, the same for every arm.

Rows are taken in their order, but within windows of some hundred those of about one length stand together in a step.
AdamW; the learning rate rises over 3 % of the steps and falls to zero along half a cosine; gradients are clipped at 1;
one epoch.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from experiments.knowledge_forgetting.arms import Recipe, parameter_groups, set_blc_weight
from experiments.knowledge_forgetting.scale import Row, Scale
from loramoe import LoraMoeModel, last_balance
from loramoe.data import PackedCollator, ReleaseTemplate, SftCollator, TemplateError, conversation
from loramoe.report import ShareMeter, Shares

WARMUP = 0.03
CURVE_POINTS = 20
WINDOW = 8  # batches whose rows are sorted by length


class Trained(NamedTuple):
    """What a training leaves beside the model.

    Attributes:
        steps: How many there were.
        curve: Step and mean training loss of the language model since the point before.
        shares: Which expert served which type in the last tenth of the steps; None where there are no experts.
        seconds: How long it took.
    """

    steps: int
    curve: list[tuple[int, float]]
    shares: Shares | None
    seconds: float


def train(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    scale: Scale,
    recipe: Recipe,
    learning_rate: float,
    progress: bool = True,
) -> Trained:
    """Trains a model on rows, once, in their order.

    Args:
        model: What `prepare` returned.
        tokenizer: The base model's.
        rows: Training data.
        scale: Where batch size and longest row come from.
        recipe: Of the arm.
        learning_rate: At its peak.
        progress: Show a progress bar.

    Returns:
        How it went.
    """
    batches = list(_batches(tokenizer, rows, scale, recipe.grouped))
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe, learning_rate), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARMUP * len(batches)), len(batches))
    meter, losses, curve = ShareMeter(), list[float](), list[tuple[int, float]]()
    every = math.ceil(len(batches) / CURVE_POINTS)
    start = time.perf_counter()
    model.train()
    shown = tqdm(batches, desc="training", unit="step", leave=False, disable=not progress)
    for step, batch in enumerate(shown, start=1):
        set_blc_weight(model, recipe, step / len(batches))
        losses.append(_step(model, batch, optimizer, scale.bf16))
        schedule.step()
        balance = last_balance(model)
        if balance is not None and step > 0.9 * len(batches):
            meter.add(balance)
        if step % every == 0 or step == len(batches):
            curve.append((step, sum(losses) / len(losses)))
            losses.clear()
    model.eval()
    return Trained(len(batches), curve, meter.result(), time.perf_counter() - start)


def _batches(tokenizer: Any, rows: Sequence[Row], scale: Scale, grouped: bool) -> Iterator[dict[str, Any]]:
    collate = PackedCollator() if scale.packing else SftCollator(tokenizer.pad_token_id)
    features = []
    conversations = [conversation(row["instruction"], row["input"], row["output"]) for row in rows]
    for row, encoded in zip(rows, ReleaseTemplate(tokenizer).encode(conversations), strict=True):
        sample = None if isinstance(encoded, TemplateError) else encoded.truncated(scale.max_seq_length)
        if sample is None:
            raise ValueError(f"a row is longer than max_seq_length={scale.max_seq_length}: {row}. Leave such rows out.")
        features.append({"input_ids": sample.input_ids, "labels": sample.labels, "task_types": row["task_type"]})
    for batch in by_length(features, scale.batch_size) if grouped else _cut(features, scale.batch_size):
        yield collate(batch)


def by_length(features: Sequence[dict[str, Any]], batch_size: int) -> list[list[dict[str, Any]]]:
    """Batches of rows of about the same length, in an order that tells nothing of their length.

    Args:
        features: Rows with `input_ids`, in random order.
        batch_size: Rows a batch.

    Returns:
        Batches, each of rows that stood within `WINDOW` batches of each other.
    """
    rng, batches = random.Random(0), []
    for window in _cut(features, WINDOW * batch_size):
        cut = _cut(sorted(window, key=lambda row: len(row["input_ids"])), batch_size)
        rng.shuffle(cut)
        batches += cut
    return batches


def _cut(features: Sequence[dict[str, Any]], size: int) -> list[list[dict[str, Any]]]:
    return [list(features[start : start + size]) for start in range(0, len(features), size)]


def _step(model: Any, batch: dict[str, Any], optimizer: torch.optim.Optimizer, bf16: bool) -> float:
    """One step; returns the loss of the language model alone."""
    has_experts: bool = isinstance(model, PeftModel) and isinstance(model.base_model, LoraMoeModel)
    inputs = {
        name: values.to(model.device) if isinstance(values, torch.Tensor) else values
        for name, values in batch.items()
        if has_experts or name != "task_types"
    }
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        loss = model(**inputs).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if not has_experts:
        return float(loss.detach())
    balance = last_balance(model)
    assert balance is not None
    return float(loss.detach()) - model.peft_config["default"].blc_weight * balance.constraint.item()
