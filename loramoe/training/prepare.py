"""Everything of a run that can be wrong, before weights are loaded; and the recipe that a resumed run must share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import datasets
import torch
from torch.utils.data import IterableDataset
from transformers import SchedulerType, Trainer, get_scheduler, set_seed
from transformers.trainer_utils import IntervalStrategy
from transformers.training_args import OptimizerNames

from loramoe.data import DataConfig, PackedCollator, PromptFormat, SftCollator, Splits, load_splits
from loramoe.decoding import pad_id
from loramoe.evaluation.recall import Probe, read_probes
from loramoe.loading import check_positions, load_config
from loramoe.training.arguments import Arguments, TrainArguments
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
    prompt_format: PromptFormat  # template, length and names of the task types, saved beside each adapter
    model_config: Any  # of the base model
    model: Any  # adapted, without weights; None where an adapter is continued
    probes: list[Probe]
    collator: Any


def prepare(
    arguments: Arguments, train_dataset: Any = None, eval_dataset: Any = None, collator: Any = None
) -> Prepared:
    """Checks flags and data, and loads everything but weights; the other arguments are those of `run_sft`."""
    model_args, data_args, args = arguments
    config = adapter_config(model_args)
    _check_trainer_flags(args)
    with as_usage_error(ValueError):
        probes = read_probes(data_args.recall_file) if data_args.recall_file else []
        data = data_args.config()
    tokenizer, model_config = load_tokenizer(model_args), load_config(model_args)
    model = empty_base(model_config) if model_args.adapter is None else None
    if model is not None:
        model = add_adapter(model, model_args, dataclasses.replace(config))
    splits = _load_data(tokenizer, config, data, arguments)
    if train_dataset is not None:
        splits = splits._replace(train=train_dataset)
    if eval_dataset is not None:
        is_named = isinstance(eval_dataset, dict)
        splits = splits._replace(validation=eval_dataset if is_named else {"validation": eval_dataset})
    _check_samples(splits, model_config)
    if collator is None and (data_args.packing or data_args.padding_free):
        collator = PackedCollator()
    collator = collator or SftCollator(pad_id(tokenizer), data_args.pad_to_multiple_of)
    types = set(config.types_of_experts)
    names = PAPER_NAMES if types <= PAPER_NAMES.keys() else {t: f"type{t}" for t in types}
    names = {**names, **data.type_names}
    _check_evaluation(args, list(splits.validation), list(names.values()))
    prompt_format = PromptFormat(data_args.template, data_args.max_seq_length, names)
    return Prepared(arguments, config, tokenizer, splits, prompt_format, model_config, model, probes, collator)


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


def _load_data(tokenizer: Any, config: LoraMoeConfig, data: DataConfig, arguments: Arguments) -> Splits:
    """Loads the samples to train and to evaluate on, and prints what became of them."""
    _, data_args, args = arguments
    if data_args.streaming and args.group_by_length:
        raise UsageError("streaming and group_by_length exclude each other: lengths are not known. Leave one out.")
    if data_args.streaming and args.max_steps <= 0:
        raise UsageError("streaming needs max_steps: how many samples there are is not known. Set --max_steps.")
    percentage = data_args.split_percentage()
    if data.validation and percentage:
        raise UsageError(f"validation data is named, and validation_split_percentage={percentage:g}. Set only one.")
    if percentage is None:  # of a stream, nothing can be set aside
        percentage = 0.0 if data_args.streaming or data.validation else 5.0
    if args.disable_tqdm or not args.should_log:
        datasets.disable_progress_bars()
    with as_usage_error(ValueError, OSError, RuntimeError):
        splits = load_splits(
            tokenizer,
            data,
            template=data_args.template,
            max_seq_length=data_args.max_seq_length,
            task_types=config.types_of_experts if config.lora_nums > 1 else None,  # a single expert has no type
            validation_percentage=percentage,
            seed=args.seed,
            num_proc=data_args.preprocessing_num_workers,
            streaming=data_args.streaming,
            packing=data_args.packing,
        )
    for name, samples in splits.validation.items():
        if not isinstance(samples, IterableDataset) and len(samples) > data_args.max_eval_samples > 0:
            chosen = random.Random(args.seed).sample(range(len(samples)), data_args.max_eval_samples)
            splits.validation[name] = samples.select(sorted(chosen))
    if args.should_log:
        _print_data(splits, config)
    return splits


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


def _check_samples(splits: Splits, model_config: Any) -> None:
    """Refuses samples that the base model has no positions or no embedding for."""
    check_positions(model_config, splits.report.longest, "the longest sample")
    rows, train = model_config.get_text_config().vocab_size, splits.train
    if splits.report.max_token_id >= rows:
        ids = ((place, max(sample["input_ids"])) for place, sample in enumerate(train) if isinstance(sample, dict))
        place, token = next(((p, t) for p, t in ids if t >= rows), ("of the data", splits.report.max_token_id))
        raise UsageError(
            f"sample {place} has the token id {token}, and the base model's embedding has {rows} rows. Set "
            "tokenizer_name_or_path to the tokenizer that the model was trained with."
        )


def _check_evaluation(args: TrainArguments, sets: list[str], types: list[str]) -> None:
    """Switches evaluation off without samples, and refuses a best metric that would be a KeyError at the first save."""
    if not sets:
        if args.load_best_model_at_end:
            raise UsageError("load_best_model_at_end needs samples to evaluate on; got none. Set --validation_file.")
        args.do_eval, args.eval_strategy = False, IntervalStrategy.NO  # the Trainer would insist on samples
        return
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    prefixes = [f"{one}_" for one in sets] if len(sets) > 1 else [""]
    parts = ["", *(f"/{type_name}" for type_name in types)]
    logged = [f"{prefix}{kind}{part}" for prefix in prefixes for kind in ("loss", "perplexity") for part in parts]
    other_kind = rf"({'|'.join(map(re.escape, prefixes))})(?!loss|perplexity).+"  # such as one of compute_metrics
    if name and name not in logged and not re.fullmatch(other_kind, name):
        raise UsageError(f"metric_for_best_model={name} is not logged. Set for example one of {', '.join(logged)}.")


def build_recipe(prepared: Prepared) -> dict[str, Any]:
    """What shapes a run, by content and not by path, as JSON would return it."""
    model_args, data_args, args = prepared.arguments
    base = {k: v for k, v in prepared.model_config.to_dict().items() if not k.startswith(("_", "transformers_version"))}
    paths = ("base_model_name_or_path", "inference_mode", "peft_version", "revision")
    adapter = {name: value for name, value in prepared.config.to_dict().items() if name not in paths}
    continued = sorted(Path(model_args.adapter).glob("adapter_model.*")) if model_args.adapter else []
    recipe = {
        **{name: getattr(args, name) for name in RECIPE},
        "base_model": _digest(json.dumps(base, sort_keys=True, default=str).encode()),
        "dtype": model_args.dtype,
        "load_in_kbits": model_args.load_in_kbits,
        "adapter_config": {name: sorted(v) if isinstance(v, set) else v for name, v in adapter.items()},
        "continued_adapter": _digest(*(f.read_bytes() for f in continued)) if continued else model_args.adapter,
        "training_data": prepared.splits.fingerprint,
        "packing": data_args.packing,
        "padding_free": data_args.padding_free,
        "deepspeed": args.hf_deepspeed_config.config if args.deepspeed else None,  # what the file holds
    }
    return cast("dict[str, Any]", json.loads(json.dumps(recipe, default=str)))


def _digest(*contents: bytes) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]
