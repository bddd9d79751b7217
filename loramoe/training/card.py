"""What the model card of an adapter says about its training: nothing that names a machine, a folder or a person."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset

import loramoe
from loramoe import LoraMoeConfig
from loramoe.data import Splits
from loramoe.report.card import Card
from loramoe.training.arguments import Arguments, DataArguments, TrainArguments
from loramoe.training.checkpoint import ADAPTER
from loramoe.training.prepare import type_names, types_of_samples

_SCHEDULE = ("learning_rate", "lr_scheduler_type", "optim", "weight_decay", "max_grad_norm", "label_smoothing_factor")
_LIBRARIES = {"PEFT": "peft", "Transformers": "transformers", "Pytorch": "torch", "Accelerate": "accelerate"}


class RunInfo(NamedTuple):
    """Where an adapter comes from, beyond the flags.

    Attributes:
        splits: The samples.
        resumed_from: The checkpoint that this start of the run went on from, None if it is the only one.
        repository: Where it goes on the hub, None for nowhere.
    """

    splits: Splits
    resumed_from: Path | None
    repository: str | None


def describe(trainer: Any, arguments: Arguments, metrics: dict[str, dict[str, float]], info: RunInfo) -> Card:
    """Gathers what the card of a finished run says."""
    model_args, data_args, args = arguments
    config = trainer.model.peft_config[ADAPTER]
    return Card(
        base_model=model_args.base_model,
        config=config,
        results=metrics,
        training={
            "started from": "an earlier adapter" if model_args.adapter else "a new adapter",
            **_training(trainer, args),
            **_precision(trainer, arguments),
            **_machine(trainer, args, info),
        },
        data=_data(info, data_args, config),
        versions=_versions(),
        repository=info.repository,
    )


def _training(trainer: Any, args: TrainArguments) -> dict[str, object]:
    flags = {name: getattr(args, name) for name in _SCHEDULE}
    warmup = "warmup_ratio" if args.warmup_ratio else "warmup_steps"
    flags |= {warmup: getattr(args, warmup)}
    return {
        **{f"`{name}`": value.value if isinstance(value, Enum) else value for name, value in flags.items()},
        "steps": f"{trainer.state.global_step:,} ({trainer.state.epoch:.4g} epochs)",
        "samples of a step": f"{args.per_device_train_batch_size} in a forward × {args.gradient_accumulation_steps} "
        f"accumulated × {args.world_size} process{'es' if args.world_size > 1 else ''}",
        "`seed`": args.seed,
    }


def _precision(trainer: Any, arguments: Arguments) -> dict[str, object]:
    model_args, _, args = arguments
    bits = model_args.load_in_kbits
    base = f"{bits} bits" if bits in (4, 8) else str(trainer.model.get_base_model().dtype).removeprefix("torch.")
    mixed = "bfloat16" if args.bf16 else "float16" if args.fp16 else "none"
    return {"base model in": base, "mixed precision": mixed}


def _machine(trainer: Any, args: TrainArguments, info: RunInfo) -> dict[str, object]:
    is_gpu = args.device.type == "cuda"
    device = torch.cuda.get_device_name(args.device) if is_gpu else f"{args.device.type} ({platform.machine()})"
    facts: dict[str, object] = {"hardware": f"{args.world_size} × {device}"}
    seconds = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    if seconds:
        start = f", from {info.resumed_from.name} on" if info.resumed_from else ""
        facts["time, evaluations included"] = f"{seconds[-1]:,.0f} s{start}"
    return facts


def _data(info: RunInfo, data_args: DataArguments, config: LoraMoeConfig) -> dict[str, object]:
    splits, report = info.splits, info.splits.report
    names = type_names(config, data_args.config().type_names)
    facts: dict[str, object] = {"samples to train on": f"{sum(report.task_types.values()):,}"}
    for name, samples in splits.validation.items():
        facts[f"{name} samples"] = "streamed" if isinstance(samples, IterableDataset) else f"{len(samples):,}"
    for kind in sorted(set(types_of_samples(config) or report.task_types), reverse=True):
        experts = [str(e) for e, type_of_expert in enumerate(config.types_of_experts) if type_of_expert == kind]
        served = f"; experts {', '.join(experts)}" if config.lora_nums > 1 else ""
        facts[f"samples of task type {kind}"] = f"{report.task_types.get(kind, 0):,} ({names.get(kind, kind)}{served})"
    facts |= {"tokens": f"{report.tokens:,}", "answers cut": report.cut, "samples dropped": report.dropped}
    flags = ("template", "max_seq_length", "packing", "padding_free", "streaming")
    facts |= {f"`{name}`": getattr(data_args, name) for name in flags}
    return {**facts, "fingerprint of samples, tokenizer and template": f"`{splits.fingerprint}`"}


def _versions() -> dict[str, str]:
    installed = {name: importlib.metadata.version(package) for name, package in _LIBRARIES.items()}
    return {**installed, "LoRAMoE": loramoe.__version__, "Python": ".".join(map(str, sys.version_info[:3]))}
