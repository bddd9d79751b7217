"""The rows of a run, as its flags name them, and what makes batches of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import datasets

from loramoe import LoraMoeConfig
from loramoe.data import DataConfig, DataSource, PackedCollator, SftCollator, Splits, load_splits
from loramoe.training.arguments import DataArguments, TrainArguments
from loramoe.training.errors import UsageError, as_usage_error


def load_data(tokenizer: Any, config: LoraMoeConfig, data_args: DataArguments, args: TrainArguments) -> Splits:
    """Loads the rows to train and to evaluate on, and tells what became of them.

    Args:
        tokenizer: The model's.
        config: Of the adapter: the rows must have the types of its experts, if there are several.
        data_args: The data's flags.
        args: The training's flags.

    Returns:
        The rows.

    Raises:
        UsageError: If flags contradict each other, the tokenizer does not suit the template, tokens cannot be stored,
            or a process that tokenises was killed.
        DatasetError: If the data is not usable.
    """
    if data_args.streaming and args.group_by_length:
        raise UsageError(
            "streaming and group_by_length exclude each other: how long a row is is not known before it is "
            "tokenised. Leave one of them out."
        )
    # All processes at once: one tokenises, the others wait for what it stores.
    with _progress_bars(args), as_usage_error(ValueError, OSError, RuntimeError):
        splits = load_splits(
            tokenizer,
            _config(data_args),
            validation_percentage=data_args.split_percentage() or 0,
            seed=args.seed,
            template=data_args.prompt_template,
            max_seq_length=data_args.max_seq_length,
            task_types=types_of_rows(config),
            num_proc=data_args.preprocessing_num_workers or 1,
            streaming=data_args.streaming,
        )
    if args.should_log:
        print(f"training data: {splits.report}")
        for name, samples in splits.validation.items():
            aside = f"{len(samples):,} of the training samples, set aside"
            print(f"{name} data: {splits.validation_reports.get(name, aside)}")
    return splits


def types_of_rows(config: LoraMoeConfig) -> tuple[int, ...] | None:
    """The task types that rows may have: those of the experts, or None for any, as a single expert has no type.

    Without the constraint several experts keep theirs: the figures and the page tell which group served which type.

    Args:
        config: Of the adapter.

    Returns:
        The types, as `load_splits` and `data_fingerprint` take them.
    """
    return config.types_of_experts if config.lora_nums > 1 else None


@contextlib.contextmanager
def _progress_bars(args: TrainArguments) -> Iterator[None]:
    """Shows the bars of reading and tokenising in the process that logs, unless they are not wanted."""
    shown = not datasets.are_progress_bars_disabled()
    if args.disable_tqdm or not args.should_log:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _config(data_args: DataArguments) -> DataConfig:
    if data_args.dataset_dir and data_args.train_file:
        raise UsageError(
            f"dataset_dir={data_args.dataset_dir} and train_file={data_args.train_file} both name the training data. "
            "Set only one."
        )
    path = data_args.dataset_dir or data_args.train_file
    if not path:
        raise UsageError("no training data is named. Set dataset_dir (a folder) or train_file.")
    validation = (DataSource(data_args.validation_file),) if data_args.validation_file else ()
    return DataConfig((DataSource(path),), validation)


def make_collator(tokenizer: Any, data_args: DataArguments) -> SftCollator | PackedCollator:
    """The collator that pads or packs, as the flags say."""
    if data_args.packing:
        return PackedCollator()
    return SftCollator(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
