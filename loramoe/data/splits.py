"""The data of a run: for training, mixed by weight and packed if wanted, and for validation."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from loramoe.data.collate import PackedSamples
from loramoe.data.pipeline import DataReport, Tokeniser
from loramoe.data.sources import DataConfig, DatasetError, DataSource, hash_of, short_name

SHUFFLE_BUFFER: Final = 10_000
"""Samples of a stream among which the next one is drawn."""


class Splits(NamedTuple):
    """The data of a run."""

    train: Any  # a `Dataset`; `PackedSamples` with packing; an `IterableDataset` with streaming
    validation: dict[str, Any]  # a `Dataset` by name
    report: DataReport  # of the training data, before samples were set aside
    validation_reports: dict[str, DataReport]  # by name; none of samples set aside
    fingerprint: str  # hash of what decides the training samples, their tokens and their mix


def tokenise_dataset(
    path: str | os.PathLike[str], tokenizer: Any, *, default_task_type: int | None = None, **options: Any
) -> tuple[Any, DataReport]:
    """Tokenises a file, a folder or a data set of the hub, or finds the result of having done so.

    `options` are the further attributes of `Tokeniser`, such as `template` and `max_seq_length`.

    Returns:
        The `Dataset` with the columns `input_ids`, `labels` (-100 where nothing is learnt), `task_types` and `length`,
        and the report.

    Raises:
        DatasetError: If samples are faulty, or none has a token to learn within max_seq_length.
        ValueError: If the tokenizer does not suit the template.
    """
    source = DataSource(os.fspath(path), default_task_type=default_task_type)
    return Tokeniser(tokenizer, **options).store(source)[:2]


def evenly_spaced(dataset: Any, most: int | None) -> Any:
    """Takes at most so many samples (None: all) of a `Dataset` at even distances, as files may be sorted."""
    if most is None or len(dataset) <= most:
        return dataset
    return dataset.select(np.linspace(0, len(dataset) - 1, most).round().astype(np.int64), keep_in_memory=True)


def load_splits(
    tokenizer: Any,
    config: DataConfig,
    *,
    validation_percentage: float = 0.0,
    seed: int = 42,
    streaming: bool = False,
    packing: bool = False,
    **options: Any,
) -> Splits:
    """Loads the data of a run; every fault of a sample in a file is found here.

    Data sets without weights follow each other; with weights, each sample is drawn from one of them, until every sample
    was drawn once.

    Args:
        tokenizer: The model's tokenizer.
        config: The data sets.
        validation_percentage: Per cent of the training samples to set aside.
        seed: Seed of the draws.
        streaming: Tokenise while training; validation data is stored all the same.
        packing: Fill rows of max_seq_length tokens with whole samples.
        options: The further attributes of `Tokeniser`, such as `template` and `max_seq_length`.

    Raises:
        DatasetError: If data is faulty.
        ValueError: If arguments contradict each other, or the tokenizer does not suit the template.
    """
    if streaming and (packing or validation_percentage):
        refused = "packing" if packing else f"validation_percentage={validation_percentage}"
        raise ValueError(f"{refused} needs all samples, which streaming does not have. Leave one of them out.")
    tokeniser = Tokeniser(tokenizer, **options)
    validation = {name: tokeniser.store(source) for name, source in _named(config.validation).items()}
    parts = [tokeniser.stream(source) if streaming else tokeniser.store(source) for source in config.datasets]
    train, held_out = _divide([samples for samples, _, _ in parts], validation_percentage, seed)
    weights = [source.weight for source in config.datasets]
    mixed = _mix(train, weights, seed)
    if streaming:
        mixed = mixed.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    used_seed = seed if validation_percentage or packing or weights[0] else None
    return Splits(
        PackedSamples(mixed, tokeniser.max_seq_length, seed) if packing else mixed,
        {name: samples for name, (samples, _, _) in validation.items()} | held_out,
        reduce(add, (report for _, report, _ in parts)),
        {name: report for name, (_, report, _) in validation.items()},
        hash_of([[key for _, _, key in parts], weights, validation_percentage, streaming, packing, used_seed]),
    )


def _named(sources: Sequence[DataSource]) -> dict[str, DataSource]:
    default = "validation" if len(sources) == 1 else None
    named: dict[str, DataSource] = {}
    for source in sources:
        name = source.name or default or short_name(Path(source.path).name)
        if name in named:
            raise DatasetError(f"two validation sets have the name {name!r}. Give them names, as in {{name: …}}.")
        named[name] = source
    return named


def _divide(datasets: list[Any], percentage: float, seed: int) -> tuple[list[Any], dict[str, Any]]:
    """Sets samples aside: one draw over all data sets, as if they followed each other."""
    from datasets import concatenate_datasets

    if not percentage:
        return datasets, {}
    sizes = list(map(len, datasets))
    total = sum(sizes)
    if total < 2:
        raise DatasetError(f"validation_percentage={percentage} needs at least 2 samples to divide; got {total}.")
    aside = np.zeros(total, dtype=bool)
    aside[random.Random(seed).sample(range(total), min(max(1, round(total * percentage / 100)), total - 1))] = True
    # In memory, because processes that start together would otherwise write the same files of indices.
    pairs = list(zip(datasets, np.split(aside, np.cumsum(sizes)[:-1]), strict=True))
    train, held_out = (
        [one.select(np.flatnonzero(mask == keep), keep_in_memory=True) for one, mask in pairs] for keep in (False, True)
    )
    return train, {"validation": concatenate_datasets(held_out)}


def _mix(datasets: list[Any], weights: list[float | None], seed: int) -> Any:
    from datasets import concatenate_datasets, interleave_datasets

    shares = [weight for weight in weights if weight]  # all data sets have one, or none
    if len(datasets) == 1 or not shares:
        return concatenate_datasets(datasets)
    probabilities = [share / sum(shares) for share in shares]
    return interleave_datasets(datasets, probabilities, seed=seed, stopping_strategy="all_exhausted")
