"""Training and validation data: which rows a run learns from and which it is measured on."""

from __future__ import annotations

import os
import random
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from loramoe.data.read import DatasetError, data_files
from loramoe.data.report import StreamReport, TokeniseReport
from loramoe.data.stream import StreamedRows, stream_dataset
from loramoe.data.tokenise import tokenise_dataset

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Rows: TypeAlias = "Dataset | StreamedRows"


class Splits(NamedTuple):
    """The data of a run.

    Attributes:
        train: The rows to learn from.
        validation: The rows to measure on, None if there are none.
        train_report: What became of the training files; before rows were set aside, if they were.
        validation_report: What became of the validation file, None without one.
    """

    train: Rows
    validation: Rows | None
    train_report: TokeniseReport | StreamReport
    validation_report: TokeniseReport | StreamReport | None


def load_splits(
    tokenizer: PreTrainedTokenizerBase,
    *,
    dataset_dir: str | os.PathLike[str] | None = None,
    train_file: str | os.PathLike[str] | None = None,
    validation_file: str | os.PathLike[str] | None = None,
    validation_split_percentage: float | None = None,
    seed: int = 42,
    template: str = "release",
    max_seq_length: int = 1024,
    task_types: Collection[int] | None = None,
    num_proc: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
    streaming: bool = False,
) -> Splits:
    """Loads the data of a run: checks all of it, and tokenises it now or, streaming, when it is needed.

    The training data is named once, the validation data at most once: by a file (or folder) of its own, or as a share
    of the training rows. That share is drawn at random, alike for all task types; it depends on rows and seed only.

    Args:
        tokenizer: The model's tokenizer.
        dataset_dir: Folder of training files, or one file.
        train_file: Training file, or a folder: the other name for the same thing.
        validation_file: Validation file or folder.
        validation_split_percentage: Per cent of the kept training rows (streaming: of all) to set aside, from 1 to 99;
            0 and None: none.
        seed: Seed of the draw.
        template: As in `tokenise_dataset`, like the remaining arguments.
        max_seq_length: Most tokens of a row.
        task_types: The task types that the experts have; None accepts any integer.
        num_proc: Processes that tokenise; streaming, the workers of the DataLoader do.
        cache_dir: Folder for finished datasets; streaming, nothing is written.
        streaming: Whether rows are tokenised when they are needed (`stream_dataset`), and not stored.

    Returns:
        The datasets and their reports.

    Raises:
        DatasetError: If data is broken, if a file serves both purposes, or if there are too few rows to divide.
        ImportError: If the `datasets` library is not installed.
        ValueError: If the arguments contradict each other or are out of range.
    """
    train_path = _train_path(dataset_dir, train_file)
    _check_validation(train_path, validation_file, validation_split_percentage)

    settings: dict[str, Any] = {"template": template, "max_seq_length": max_seq_length, "task_types": task_types}

    def load(path: str | os.PathLike[str]) -> tuple[Rows, TokeniseReport | StreamReport]:
        if streaming:
            return stream_dataset(path, tokenizer, **settings)
        return tokenise_dataset(path, tokenizer, num_proc=num_proc, cache_dir=cache_dir, **settings)

    train, train_report = load(train_path)
    if validation_file:
        validation, validation_report = load(validation_file)
        return Splits(train, validation, train_report, validation_report)
    if validation_split_percentage:
        return Splits(*_divide(train, validation_split_percentage, seed), train_report, None)
    return Splits(train, None, train_report, None)


def _train_path(
    dataset_dir: str | os.PathLike[str] | None, train_file: str | os.PathLike[str] | None
) -> str | os.PathLike[str]:
    if dataset_dir and train_file:
        raise ValueError(
            f"dataset_dir and train_file both name the training data; got dataset_dir={os.fspath(dataset_dir)!r} and "
            f"train_file={os.fspath(train_file)!r}. Set only one."
        )
    path = dataset_dir or train_file
    if not path:
        raise ValueError(
            "no training data is named. Set dataset_dir (a folder) or train_file (a .json or .jsonl file)."
        )
    return path


def _check_validation(
    train_path: str | os.PathLike[str], validation_file: str | os.PathLike[str] | None, percentage: float | None
) -> None:
    if percentage and not 1 <= percentage <= 99:
        raise ValueError(
            f"validation_split_percentage must be 0, or from 1 to 99; got {percentage}. For 5 per cent, write 5."
        )
    if not validation_file:
        return
    if percentage:
        raise ValueError(
            f"validation_file={os.fspath(validation_file)!r} and validation_split_percentage={percentage} "
            "both name the validation data. Set only one."
        )
    both = {file.resolve() for file in data_files(train_path)} & {
        file.resolve() for file in data_files(validation_file)
    }
    if both:
        raise DatasetError(
            f"{min(both)} is training data and validation data at once, so that validation would measure what was "
            "learnt by heart. Move it to a folder of its own, or name the training file alone."
        )


def _divide(rows: Rows, percentage: float, seed: int) -> tuple[Rows, Rows]:
    if len(rows) < 2:
        raise DatasetError(
            f"validation_split_percentage={percentage} needs at least 2 rows to divide; got {len(rows)}. "
            "Add rows, or set it to 0."
        )
    size = min(max(1, round(len(rows) * percentage / 100)), len(rows) - 1)
    held_out = np.zeros(len(rows), dtype=bool)
    held_out[random.Random(seed).sample(range(len(rows)), size)] = True
    return _select(rows, np.flatnonzero(~held_out)), _select(rows, np.flatnonzero(held_out))


def _select(rows: Rows, indices: npt.NDArray[np.int64]) -> Rows:
    if isinstance(rows, StreamedRows):
        return rows.select(indices)
    # In memory, because ranks of one machine that start together would otherwise write the same index files.
    return rows.select(indices, keep_in_memory=True)
