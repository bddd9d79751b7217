"""The data of a run: what it learns from, mixed by weight and packed if wanted, and what it is measured on."""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from loramoe.data.collate import PackedSamples
from loramoe.data.pipeline import DataReport, Tokeniser
from loramoe.data.sources import DataConfig, DatasetError, DataSource, data_files, hash_of, short_name

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

SHUFFLE_BUFFER: Final = 10_000
"""Samples of a stream among which the next one is drawn."""


class Splits(NamedTuple):
    """The data of a run.

    Attributes:
        train: What to learn from: a `Dataset`; `PackedSamples` with packing; an `IterableDataset` with streaming.
        validation: What to measure on, by name.
        report: What became of the training data; before samples were set aside, if they were.
        validation_reports: What became of the validation sets, by name; none for samples set aside.
        fingerprint: Hash of what decides the training samples, their tokens and their mix.
    """

    train: Any
    validation: dict[str, Dataset]
    report: DataReport
    validation_reports: dict[str, DataReport]
    fingerprint: str


def tokenise_dataset(
    path: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "release",
    max_seq_length: int = 1024,
    task_types: Collection[int] | None = None,
    default_task_type: int | None = None,
    num_proc: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[Dataset, DataReport]:
    """Tokenises a file, a folder or a data set of the hub, or finds the result of having done so.

    Args:
        path: The data.
        tokenizer: The model's tokenizer.
        template: Name of the prompt template.
        max_seq_length: Most tokens of a sample, at least 2. What is longer is cut; a sample with no token left to learn
            is dropped.
        task_types: The types that the experts have; None accepts any integer.
        default_task_type: Type of the samples that have none.
        num_proc: Processes that tokenise; the result does not depend on it.
        cache_dir: Folder for finished data sets. Default: `loramoe` in the cache of the `datasets` library.

    Returns:
        The data set with the columns `input_ids`, `labels` (-100 where nothing is learnt), `task_types` and `length`,
        and the report.

    Raises:
        DatasetError: If samples are faulty, or none has a token to learn within max_seq_length.
        ValueError: If an argument is out of range or the tokenizer does not suit the template.
    """
    tokeniser = Tokeniser(tokenizer, template, max_seq_length, task_types, num_proc, cache_dir)
    dataset, report, _ = tokeniser.store(DataSource(os.fspath(path), default_task_type=default_task_type))
    return dataset, report


def evenly_spaced(dataset: Dataset, most: int | None) -> Dataset:
    """Takes at most so many samples (None: all) at even distances, as files may be sorted."""
    if most is None or len(dataset) <= most:
        return dataset
    return dataset.select(np.linspace(0, len(dataset) - 1, most).round().astype(np.int64), keep_in_memory=True)


def load_splits(
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    template: str = "release",
    max_seq_length: int = 1024,
    task_types: Collection[int] | None = None,
    validation_percentage: float = 0.0,
    seed: int = 42,
    num_proc: int = 1,
    streaming: bool = False,
    packing: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Splits:
    """Loads the data of a run; every fault of a sample in a file is found here.

    Data sets without weights follow each other; with weights, each sample is drawn from one of them, until every sample
    was drawn once.

    Args:
        tokenizer: The model's tokenizer.
        config: The data sets.
        template: Name of the prompt template.
        max_seq_length: Most tokens of a sample, and of a packed row.
        task_types: The types that the experts have; None accepts any integer.
        validation_percentage: Per cent of the training samples to set aside, drawn at random from all alike.
        seed: Seed of the draws.
        num_proc: Processes that tokenise.
        streaming: Tokenise while training; validation data is stored all the same.
        packing: Fill rows with whole samples.
        cache_dir: As in `tokenise_dataset`.

    Returns:
        The data.

    Raises:
        DatasetError: If data is faulty, or is both training and validation data.
        ValueError: If arguments contradict each other or are out of range.
    """
    _check(config, validation_percentage, streaming, packing)
    tokeniser = Tokeniser(tokenizer, template, max_seq_length, task_types, num_proc, cache_dir)
    validation = {name: tokeniser.store(source) for name, source in _named(config.validation).items()}
    parts = list(map(tokeniser.stream if streaming else tokeniser.store, config.datasets))
    train, held_out = _divide([part.dataset for part in parts], validation_percentage, seed)
    mixed = _mix(train, [source.weight for source in config.datasets], seed)
    if streaming:
        mixed = mixed.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    pairs = zip(config.datasets, parts, strict=True)
    sources = [source.recipe(part.content) | {"weight": source.weight} for source, part in pairs]
    drawn = validation_percentage or packing or config.datasets[0].weight
    options = {"percentage": validation_percentage, "streaming": streaming, "packing": packing, "sources": sources}
    return Splits(
        PackedSamples(mixed, max_seq_length, seed) if packing else mixed,
        {name: one.dataset for name, one in validation.items()} | held_out,
        sum((part.report for part in parts[1:]), start=parts[0].report),
        {name: one.report for name, one in validation.items()},
        hash_of({**tokeniser.recipe(), **options, "seed": seed if drawn else None}),
    )


def _check(config: DataConfig, percentage: float, streaming: bool, packing: bool) -> None:
    share = f"validation_percentage={percentage}"
    if percentage and not 1 <= percentage <= 99:
        raise ValueError(f"validation_percentage must be 0, or from 1 to 99; got {percentage}. 5 is 5 per cent.")
    if percentage and config.validation:
        raise ValueError(f"{share} and {config.validation[0].path} both name the validation data. Set only one.")
    if streaming and packing:
        raise ValueError("packing needs the lengths of all samples, which streaming does not know. Use padding_free.")
    if streaming and percentage:
        raise ValueError(f"{share} needs all samples, which streaming does not have. Name validation data, or set 0.")
    train = {place for source in config.datasets for place in _places(source)}
    for source in config.validation:
        if both := train & _places(source):
            raise DatasetError(f"{min(both)[0]} is training data and validation data at once. Name other data.")


def _places(source: DataSource) -> set[tuple[str, ...]]:
    if source.local:
        return {(str(file.resolve()),) for file in data_files(source.path)}
    return {(source.path, source.subset or "", source.split)}


def _named(sources: Sequence[DataSource]) -> dict[str, DataSource]:
    if len(sources) == 1:
        return {sources[0].name or "validation": sources[0]}
    names = [source.name or short_name(Path(source.path).name) for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise DatasetError(f"two validation sets have the name {name!r}. Give them names, as in {{name: …}}.")
    return dict(zip(names, sources, strict=True))


def _divide(datasets: Sequence[Any], percentage: float, seed: int) -> tuple[list[Any], dict[str, Any]]:
    """Sets samples aside: one draw over all data sets, as if they followed each other."""
    from datasets import concatenate_datasets

    if not percentage:
        return list(datasets), {}
    sizes = [len(one) for one in datasets]
    total = sum(sizes)
    if total < 2:
        raise DatasetError(f"validation_percentage={percentage} needs at least 2 samples to divide; got {total}.")
    aside = np.zeros(total, dtype=bool)
    aside[random.Random(seed).sample(range(total), min(max(1, round(total * percentage / 100)), total - 1))] = True
    # In memory, because processes that start together would otherwise write the same files of indices.
    train, held_out = (
        [
            one.select(np.flatnonzero(mask == keep), keep_in_memory=True)
            for one, mask in zip(datasets, np.split(aside, np.cumsum(sizes)[:-1]), strict=True)
        ]
        for keep in (False, True)
    )
    return train, {"validation": concatenate_datasets(held_out)}


def _mix(datasets: list[Any], weights: list[float | None], seed: int) -> Any:
    from datasets import concatenate_datasets, interleave_datasets

    shares = [weight for weight in weights if weight]
    if len(datasets) == 1 or not shares:
        return concatenate_datasets(datasets)
    probabilities = [share / sum(shares) for share in shares]
    return interleave_datasets(datasets, probabilities, seed=seed, stopping_strategy="all_exhausted")
