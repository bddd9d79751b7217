"""The samples of a run as its flags name them, and what makes batches of them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import datasets

from loramoe.data import PackedCollator, SftCollator, Splits, load_splits
from loramoe.decoding import pad_id
from loramoe.training.arguments import DataArguments, TrainArguments
from loramoe.tuner.config import LoraMoeConfig
from loramoe.utils import UsageError, as_usage_error

PAPER_NAMES = {0: "tasks", 1: "knowledge"}


def load_data(tokenizer: Any, config: LoraMoeConfig, data_args: DataArguments, args: TrainArguments) -> Splits:
    """Loads the samples to train and to evaluate on, and prints what became of them."""
    if data_args.streaming and args.group_by_length:
        raise UsageError("streaming and group_by_length exclude each other: lengths are not known. Leave one out.")
    if data_args.streaming and args.max_steps <= 0 and args.do_train:
        raise UsageError("streaming needs max_steps: how many samples there are is not known. Set --max_steps.")
    data = data_args.config()
    percentage = data_args.split_percentage()
    if data.validation and percentage:
        raise UsageError(f"validation data is named, and validation_split_percentage={percentage:g}. Set only one.")
    default = 0.0 if data_args.streaming else 5.0  # of a stream, nothing can be set aside
    with _progress_bars(args), as_usage_error(ValueError, OSError, RuntimeError):
        splits = load_splits(
            tokenizer,
            data,
            template=data_args.template,
            max_seq_length=data_args.max_seq_length,
            task_types=types_of_samples(config),
            validation_percentage=0.0 if data.validation else default if percentage is None else percentage,
            seed=args.seed,
            num_proc=data_args.preprocessing_num_workers,
            streaming=data_args.streaming,
            packing=data_args.packing,
        )
    splits = splits._replace(
        validation={
            name: _at_most(samples, data_args.max_eval_samples, args.seed)
            for name, samples in splits.validation.items()
        }
    )
    if args.should_log:
        _print_data(splits, config)
    return splits


def _at_most(samples: Any, limit: int, seed: int) -> Any:
    if not limit or not _has_length(samples) or len(samples) <= limit:
        return samples
    return samples.select(sorted(random.Random(seed).sample(range(len(samples)), limit)))


def _has_length(samples: Any) -> bool:
    return not isinstance(samples, datasets.IterableDataset)


def _print_data(splits: Splits, config: LoraMoeConfig) -> None:
    print(f"training data: {splits.report}")
    for name, samples in splits.validation.items():
        report = splits.validation_reports.get(name)
        size = f"{len(samples):,} samples" if _has_length(samples) else "streamed"
        print(f"{name} data: {size}{'' if report is None else f'; {report}'}")
    found = set(splits.report.task_types)
    if config.lora_nums > 1 and config.blc_weight > 0 and len(found) == 1:
        print(
            f"notice: all samples have task type {next(iter(found))}, so the constraint has nothing to separate: it "
            "only balances the experts. Add data of another type (30 to 50 % of type 1 is a good start)."
        )


def types_of_samples(config: LoraMoeConfig) -> tuple[int, ...] | None:
    """The task types that samples may have: those of the experts, or None for any, as a single expert has no type."""
    return config.types_of_experts if config.lora_nums > 1 else None


def type_names(config: LoraMoeConfig, named: Mapping[int, str]) -> dict[int, str]:
    """Names of the task types: those of the data's configuration, or the paper's where the types are the paper's."""
    types = set(config.types_of_experts)
    return {**(PAPER_NAMES if types <= PAPER_NAMES.keys() else {t: f"type{t}" for t in types}), **named}


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


def make_collator(tokenizer: Any, data_args: DataArguments) -> SftCollator | PackedCollator:
    """The collator that pads, or puts samples one after the other, as the flags say."""
    if data_args.packing or data_args.padding_free:
        return PackedCollator()
    return SftCollator(pad_id(tokenizer), data_args.pad_to_multiple_of)
