"""Everything of a run that can be wrong, before weights are loaded; and what `--dry_run` prints of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import IterableDataset
from transformers import SchedulerType, Trainer, get_scheduler, set_seed
from transformers.training_args import OptimizerNames

from loramoe.data import Splits
from loramoe.evaluation.recall import Probe, read_probes
from loramoe.loading import check_positions, load_config
from loramoe.training.arguments import Arguments, TrainArguments
from loramoe.training.checkpoint import ADAPTER
from loramoe.training.memory import GIB, Engine, Parameters, Plan, memory_per_gpu
from loramoe.training.model import adapter_config, add_adapter, empty_base, load_tokenizer
from loramoe.training.samples import load_data, make_collator, type_names
from loramoe.tuner.config import LoraMoeConfig
from loramoe.utils import UsageError, as_usage_error

# Flags that shape a run: a run that was interrupted is resumed with the same values only.
RECIPE: tuple[str, ...] = (
    "learning_rate",
    "router_learning_rate",
    "loraplus_lr_ratio",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
)
RECIPE += ("warmup_steps", "weight_decay", "optim", "adam_beta1", "adam_beta2", "max_grad_norm", "num_train_epochs")
RECIPE += ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "bf16", "fp16")
RECIPE += ("label_smoothing_factor", "neftune_noise_alpha", "group_by_length", "world_size", "fsdp")


@dataclass
class Prepared:
    """What a run needs beside its weights, checked.

    Attributes:
        arguments: The flags.
        config: The adapter's configuration.
        tokenizer: The tokenizer.
        splits: The samples.
        model_config: The base model's configuration.
        model: The adapted model without weights; None where an adapter is continued.
        probes: Facts to ask for.
        collator: Makes batches of samples.
    """

    arguments: Arguments
    config: LoraMoeConfig
    tokenizer: Any
    splits: Splits
    model_config: Any
    model: Any
    probes: list[Probe]
    collator: Any


def prepare(
    arguments: Arguments, train_dataset: Any = None, eval_dataset: Any = None, collator: Any = None
) -> Prepared:
    """Checks flags and data, and loads everything but weights."""
    model_args, data_args, args = arguments
    config = adapter_config(model_args)
    _check_trainer_flags(args)
    with as_usage_error(ValueError):
        probes = read_probes(data_args.recall_file) if data_args.recall_file else []
    tokenizer = load_tokenizer(model_args)
    model_config = load_config(model_args)
    model = empty_base(model_config) if model_args.adapter is None else None
    if model is not None:
        model = add_adapter(model, model_args, dataclasses.replace(config))
    splits = load_data(tokenizer, config, data_args, args)
    if train_dataset is not None:
        splits = splits._replace(train=train_dataset)
    if eval_dataset is not None:
        splits = splits._replace(
            validation=eval_dataset if isinstance(eval_dataset, dict) else {"validation": eval_dataset}
        )
    _check_samples(splits, model_config)
    _check_batches(splits.train, args)
    collate = collator or make_collator(tokenizer, data_args)
    return Prepared(arguments, config, tokenizer, splits, model_config, model, probes, collate)


def with_adapter(arguments: Arguments) -> Arguments:
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
    with as_usage_error(
        *kinds, about=f"lr_scheduler_type={SchedulerType(args.lr_scheduler_type).value} cannot be used:"
    ):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10, scheduler_specific_kwargs=args.lr_scheduler_kwargs)


def _check_batches(train: Any, args: TrainArguments) -> None:
    at_once = args.per_device_train_batch_size * args.world_size
    if args.do_train and args.dataloader_drop_last and not isinstance(train, IterableDataset) and len(train) < at_once:
        raise UsageError(
            f"{len(train)} samples make no whole batch of {at_once} (per_device_train_batch_size x processes), and "
            "dataloader_drop_last drops what is left. Lower the batch size, or leave it out."
        )


def _check_samples(splits: Splits, model_config: Any) -> None:
    """Refuses samples with more tokens than the base model has positions, or ids beyond its embedding."""
    check_positions(model_config, splits.report.longest, "the longest sample")
    rows = model_config.get_text_config().vocab_size
    if splits.report.max_token_id < rows:
        return
    ids = ((place, max(sample["input_ids"])) for place, sample in enumerate(splits.train) if isinstance(sample, dict))
    place, token = next(((p, t) for p, t in ids if t >= rows), ("of the data", splits.report.max_token_id))
    raise UsageError(
        f"sample {place} has the token id {token}, and the base model's embedding has {rows} rows. Set "
        "tokenizer_name_or_path to the tokenizer that the model was trained with."
    )


def build_recipe(prepared: Prepared) -> dict[str, Any]:
    """What shapes a run, by content and not by path, as JSON would return it."""
    model_args, data_args, args = prepared.arguments
    base = {k: v for k, v in prepared.model_config.to_dict().items() if not k.startswith(("_", "transformers_version"))}
    adapter = prepared.config.to_dict()
    for name in ("base_model_name_or_path", "inference_mode", "peft_version", "revision"):
        adapter.pop(name, None)
    recipe = {
        **{name: getattr(args, name) for name in RECIPE},
        "base_model": _digest(base),
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


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _adapter_digest(adapter: str | None) -> str | None:
    if adapter is None:
        return None
    files = sorted(Path(adapter).glob("adapter_model.*")) if Path(adapter).is_dir() else []
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16] if files else adapter


def dry_run_summary(prepared: Prepared) -> str:
    """What a run would do: processes, batch, steps, samples and tokens, and memory on each device."""
    model_args, data_args, args = prepared.arguments
    report, names = prepared.splits.report, type_names(prepared.config, data_args.config().type_names)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    types = ", ".join(f"{names.get(t, t)} (type {t}): {count:,}" for t, count in sorted(report.task_types.items()))
    lines = ["", "Dry run: nothing was loaded or trained.", f"  base model         {model_args.base_model}"]
    lines.append(f"  processes          {args.world_size} ({_engine(args)}, {args.device.type})")
    lines.append(
        f"  global batch       {batch} = {args.per_device_train_batch_size} per device x "
        f"{args.gradient_accumulation_steps} accumulated x {args.world_size} processes"
    )
    lines += [f"  samples per type   {types}", f"  tokens             {report.tokens:,}"]
    if prepared.model is not None:
        lines += _memory_lines(prepared)
    return "\n".join(lines)


def _memory_lines(prepared: Prepared) -> list[str]:
    model_args, data_args, args = prepared.arguments
    count = Parameters.of(prepared.model)
    saved = prepared.model_config.get_text_config().dtype if model_args.dtype == "auto" else model_args.dtype
    bits = model_args.load_in_kbits if model_args.load_in_kbits != 16 else 32 if "float32" in str(saved) else 16
    plan = Plan(
        _engine(args),
        args.world_size,
        prepared.config.lora_nums,
        prepared.config.r,
        args.per_device_train_batch_size,
        data_args.max_seq_length,
        bits,
        bool(args.gradient_checkpointing),
    )
    parts = memory_per_gpu(count, prepared.model_config, plan)
    named = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
    return [
        f"  parameters         {count.frozen:,} frozen, {count.trained:,} trained",
        f"  memory per device  {sum(parts.values()) / GIB:.1f} GiB by formula ({named})",
    ]


def _engine(args: TrainArguments) -> Engine:
    if args.fsdp:
        return "fsdp2"
    if not args.deepspeed:
        return "ddp"
    zero = args.hf_deepspeed_config.config.get("zero_optimization", {})
    offload = "_offload" if any(str(name).startswith("offload") for name in zero) else ""
    return cast("Engine", f"zero{zero.get('stage', 0) or 1}{offload if zero.get('stage', 0) > 1 else ''}")
