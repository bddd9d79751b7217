"""Everything of a run that can be wrong, before weights are loaded; and the recipe that a resumed run must share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import datasets
import torch
from torch.utils.data import IterableDataset
from transformers import SchedulerType, Trainer, get_scheduler, set_seed
from transformers.training_args import OptimizerNames

from loramoe.data import PackedCollator, SftCollator, Splits, load_splits
from loramoe.decoding import pad_id
from loramoe.evaluation.recall import Probe, read_probes
from loramoe.loading import check_positions, load_config
from loramoe.training.arguments import Arguments, TrainArguments
from loramoe.training.checkpoint import ADAPTER
from loramoe.training.model import adapter_config, add_adapter, empty_base, load_tokenizer
from loramoe.tuner.config import LoraMoeConfig
from loramoe.utils import UsageError, as_usage_error

PAPER_NAMES: Final = {0: "tasks", 1: "knowledge"}
# Flags that shape a run: an interrupted run is resumed with the same values only.
RECIPE: Final = (
    *("learning_rate", "router_learning_rate", "loraplus_lr_ratio", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "weight_decay", "optim", "adam_beta1", "adam_beta2", "max_grad_norm", "neftune_noise_alpha"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size"),
    *("seed", "bf16", "fp16", "label_smoothing_factor", "group_by_length", "fsdp"),
)


@dataclass
class Prepared:
    """What a run needs beside its weights, checked."""

    arguments: Arguments
    config: LoraMoeConfig  # of the adapter
    tokenizer: Any
    splits: Splits
    type_names: dict[int, str]  # of the task types
    model_config: Any  # of the base model
    model: Any  # adapted, without weights; None where an adapter is continued
    probes: list[Probe]
    collator: Any


def prepare(
    arguments: Arguments, train_dataset: Any = None, eval_dataset: Any = None, collator: Any = None
) -> Prepared:
    """Checks flags and data, and loads everything but weights.

    Args:
        arguments: The flags.
        train_dataset: In place of the samples that the flags name.
        eval_dataset: Likewise; a dictionary for several sets by name.
        collator: In place of the one that the flags name.

    Raises:
        UsageError: If flags cannot be used.
        DatasetError: If the data cannot.
    """
    model_args, data_args, args = arguments = _with_adapter(arguments)
    config = adapter_config(model_args)
    _check_trainer_flags(args)
    with as_usage_error(ValueError):
        probes = read_probes(data_args.recall_file) if data_args.recall_file else []
    tokenizer = load_tokenizer(model_args)
    model_config = load_config(model_args)
    model = empty_base(model_config) if model_args.adapter is None else None
    if model is not None:
        model = add_adapter(model, model_args, dataclasses.replace(config))
    splits = _load_data(tokenizer, config, arguments)
    if train_dataset is not None:
        splits = splits._replace(train=train_dataset)
    if eval_dataset is not None:
        splits = splits._replace(
            validation=eval_dataset if isinstance(eval_dataset, dict) else {"validation": eval_dataset}
        )
    _check_samples(splits, model_config, args)
    if collator is None and (data_args.packing or data_args.padding_free):
        collator = PackedCollator()
    collator = collator or SftCollator(pad_id(tokenizer), data_args.pad_to_multiple_of)
    names = type_names(config, data_args.config().type_names)
    if splits.validation:
        _check_best_metric(args.metric_for_best_model, list(splits.validation), list(names.values()))
    return Prepared(arguments, config, tokenizer, splits, names, model_config, model, probes, collator)


def _with_adapter(arguments: Arguments) -> Arguments:
    """Without training, the adapter to evaluate is that of `--adapter`, or else the one that output_dir holds."""
    model_args, data_args, args = arguments
    if args.do_train or model_args.adapter is not None:
        return arguments
    adapter = Path(args.output_dir) / ADAPTER
    if not adapter.is_dir():
        raise UsageError(
            f"there is no adapter to evaluate: adapter is not set, and {adapter} does not exist. Set --adapter, the "
            "--output_dir of a finished run, or --do_train true."
        )
    return dataclasses.replace(model_args, adapter=str(adapter)), data_args, args


def _check_trainer_flags(args: TrainArguments) -> None:
    """Builds what the Trainer builds late, so that its errors come before the base model is loaded."""
    kinds = (ValueError, ImportError, KeyError, TypeError, AttributeError, OverflowError)
    with as_usage_error(*kinds, about=f"seed={args.seed} cannot be used:"):
        set_seed(args.seed)
    model = torch.nn.Linear(1, 1)
    with as_usage_error(*kinds, about=f"optim={OptimizerNames(args.optim).value} cannot be used:"):
        Trainer.get_optimizer_cls_and_kwargs(args, model)
    scheduler = SchedulerType(args.lr_scheduler_type).value
    with as_usage_error(*kinds, about=f"lr_scheduler_type={scheduler} cannot be used:"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        get_scheduler(scheduler, optimizer, 1, 10, scheduler_specific_kwargs=args.lr_scheduler_kwargs)


def _load_data(tokenizer: Any, config: LoraMoeConfig, arguments: Arguments) -> Splits:
    """Loads the samples to train and to evaluate on, and prints what became of them."""
    _, data_args, args = arguments
    if data_args.streaming and args.group_by_length:
        raise UsageError("streaming and group_by_length exclude each other: lengths are not known. Leave one out.")
    if data_args.streaming and args.max_steps <= 0 and args.do_train:
        raise UsageError("streaming needs max_steps: how many samples there are is not known. Set --max_steps.")
    data, percentage = data_args.config(), data_args.split_percentage()
    if data.validation and percentage:
        raise UsageError(f"validation data is named, and validation_split_percentage={percentage:g}. Set only one.")
    if percentage is None:
        percentage = 0.0 if data_args.streaming else 5.0  # of a stream, nothing can be set aside
    if args.disable_tqdm or not args.should_log:
        datasets.disable_progress_bars()
    with as_usage_error(ValueError, OSError, RuntimeError):
        splits = load_splits(
            tokenizer,
            data,
            template=data_args.template,
            max_seq_length=data_args.max_seq_length,
            task_types=types_of_samples(config),
            validation_percentage=0.0 if data.validation else percentage,
            seed=args.seed,
            num_proc=data_args.preprocessing_num_workers,
            streaming=data_args.streaming,
            packing=data_args.packing,
        )
    validation = {n: _at_most(s, data_args.max_eval_samples, args.seed) for n, s in splits.validation.items()}
    splits = splits._replace(validation=validation)
    if args.should_log:
        _print_data(splits, config)
    return splits


def _at_most(samples: Any, limit: int, seed: int) -> Any:
    if not limit or isinstance(samples, IterableDataset) or len(samples) <= limit:
        return samples
    return samples.select(sorted(random.Random(seed).sample(range(len(samples)), limit)))


def _print_data(splits: Splits, config: LoraMoeConfig) -> None:
    print(f"training data: {splits.report}")
    for name, samples in splits.validation.items():
        report = splits.validation_reports.get(name)
        size = "streamed" if isinstance(samples, IterableDataset) else f"{len(samples):,} samples"
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


def _check_samples(splits: Splits, model_config: Any, args: TrainArguments) -> None:
    """Refuses samples that the base model has no positions or no embedding for, and too few for a batch."""
    check_positions(model_config, splits.report.longest, "the longest sample")
    rows, train = model_config.get_text_config().vocab_size, splits.train
    if splits.report.max_token_id >= rows:
        ids = ((place, max(sample["input_ids"])) for place, sample in enumerate(train) if isinstance(sample, dict))
        place, token = next(((p, t) for p, t in ids if t >= rows), ("of the data", splits.report.max_token_id))
        raise UsageError(
            f"sample {place} has the token id {token}, and the base model's embedding has {rows} rows. Set "
            "tokenizer_name_or_path to the tokenizer that the model was trained with."
        )
    at_once = args.per_device_train_batch_size * args.world_size
    if args.do_train and args.dataloader_drop_last and not isinstance(train, IterableDataset) and len(train) < at_once:
        raise UsageError(
            f"{len(train)} samples make no whole batch of {at_once} (per_device_train_batch_size x processes), and "
            "dataloader_drop_last drops what is left. Lower the batch size, or leave it out."
        )


def _check_best_metric(metric: str | None, sets: list[str], types: list[str]) -> None:
    """The Trainer would end in a KeyError at its first checkpoint."""
    name = (metric or "").removeprefix("eval_")
    prefixes = [f"{one}_" for one in sets] if len(sets) > 1 else [""]
    parts = ["", *(f"/{name}" for name in types)]
    logged = [f"{prefix}{kind}{part}" for prefix in prefixes for kind in ("loss", "perplexity") for part in parts]
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
    is_loss = prefix is not None and name.removeprefix(prefix).startswith(("loss", "perplexity"))
    if name and (prefix is None or (is_loss and name not in logged)):
        raise UsageError(f"metric_for_best_model={name} is not logged. Set for example one of {', '.join(logged)}.")


def build_recipe(prepared: Prepared) -> dict[str, Any]:
    """What shapes a run, by content and not by path, as JSON would return it."""
    model_args, data_args, args = prepared.arguments
    base = {k: v for k, v in prepared.model_config.to_dict().items() if not k.startswith(("_", "transformers_version"))}
    paths = ("base_model_name_or_path", "inference_mode", "peft_version", "revision")
    adapter = {name: value for name, value in prepared.config.to_dict().items() if name not in paths}
    recipe = {
        **{name: getattr(args, name) for name in RECIPE},
        "base_model": _digest(json.dumps(base, sort_keys=True, default=str).encode()),
        "dtype": model_args.dtype,
        "load_in_kbits": model_args.load_in_kbits,
        "adapter_config": {name: sorted(v) if isinstance(v, set) else v for name, v in adapter.items()},
        "continued_adapter": _adapter_digest(model_args.adapter),
        "training_data": prepared.splits.fingerprint,
        "packing": data_args.packing,
        "padding_free": data_args.padding_free,
        "deepspeed": args.hf_deepspeed_config.config if args.deepspeed else None,  # what the file holds
    }
    return cast("dict[str, Any]", json.loads(json.dumps(recipe, default=str)))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _adapter_digest(adapter: str | None) -> str | None:
    files = sorted(Path(adapter or "").glob("adapter_model.*")) if adapter else []
    return _digest(b"".join(file.read_bytes() for file in files)) if files else adapter
