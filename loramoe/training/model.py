"""The base model, its tokenizer, and the LoRAMoE adapter on it, as the flags of a training say."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import is_deepspeed_zero3_enabled

from loramoe.training.arguments import TrainArguments
from loramoe.training.checkpoint import ADAPTER
from loramoe.training.distributed import is_fsdp
from loramoe.training.model_arguments import ModelArguments
from loramoe.tuner.config import LoraMoeConfig
from loramoe.utils import ADAPTER_ERRORS, UsageError, as_usage_error

logger = logging.getLogger(__name__)

# What of a configuration the flags set; an adapter to continue from replaces it.
_FLAGS: tuple[str, ...] = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "lora_nums",
    "blc_alpha",
    "blc_weight",
    "types_of_experts",
    "blc_target",
)
_FLAGS += ("blc_importance",)


def adapter_config(arguments: ModelArguments) -> LoraMoeConfig:
    """The adapter's configuration: that of the flags, or of the adapter to continue from."""
    with as_usage_error(ValueError):
        requested = arguments.adapter_config()
    if arguments.adapter is None:
        return requested
    with as_usage_error(*ADAPTER_ERRORS, about=f"adapter={arguments.adapter} holds no adapter to continue from:"):
        config = PeftConfig.from_pretrained(arguments.adapter)
    if not isinstance(config, LoraMoeConfig):
        raise UsageError(
            f"adapter must hold a LoRAMoE adapter; {arguments.adapter} holds one of type {config.peft_type}. Correct "
            "the path, or leave it out to start a new adapter."
        )
    names = [*_FLAGS, *(n for n in ("target_modules", "modules_to_save") if getattr(requested, n))]
    replaced = {n: _plain(config, n) for n in names if _plain(config, n) != _plain(requested, n)}
    if replaced:
        values = ", ".join(f"{name}={value!r}" for name, value in replaced.items())
        logger.warning("the configuration of the adapter to continue from replaces the flags: %s", values)
    return config


def _plain(config: LoraMoeConfig, name: str) -> Any:
    value = getattr(config, name)
    return sorted(value) if isinstance(value, (set, list)) else value


def load_tokenizer(arguments: ModelArguments) -> Any:
    """The tokenizer of the flags, or else of the base model."""
    name = arguments.tokenizer_name_or_path or arguments.base_model
    options = {} if arguments.tokenizer_name_or_path else arguments.hub_options
    with as_usage_error(OSError, ValueError, about=f"the tokenizer {name} cannot be loaded:"):
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    # Each of several chat templates is saved as a file of its name: transformers 4 follows "../", 5 refuses to save.
    templates = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    outside = [template for template in templates if Path(template).name != template]
    if outside:
        raise UsageError(
            f"the tokenizer {name} has a chat template named {outside[0]!r}, which would be saved outside the "
            "adapter's folder. Rename it in tokenizer_config.json, and do not trust where it comes from."
        )
    return tokenizer


def load_base(arguments: ModelArguments, args: TrainArguments) -> Any:
    """Loads the base model, in 4 or 8 bits if the flags say so, each process to its own device."""
    compute_dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    options = arguments.model_options(compute_dtype)
    if not is_deepspeed_zero3_enabled() and not is_fsdp(args) and args.device.type != "cpu":
        options["device_map"] = {"": args.device}  # else each process holds all of it in host memory first
    with as_usage_error(OSError, ValueError, about=f"base_model={arguments.base_model} cannot be loaded:"):
        model = AutoModelForCausalLM.from_pretrained(arguments.base_model, **options)
    if arguments.load_in_kbits != 16:
        # use_reentrant=True would leave the routers without gradient.
        model = prepare_model_for_kbit_training(
            model, bool(args.gradient_checkpointing), gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    return model


def empty_base(config: Any) -> Any:
    """The base model without weights, to check names and count parameters on."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    with init_empty_weights(include_buffers=False):  # not by from_config, which ZeRO-3 would shard
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    model.tie_weights()
    return model


def add_adapter(base: Any, arguments: ModelArguments, config: LoraMoeConfig) -> PeftModel:
    """Adds a new adapter to a base model, or loads the one to continue from."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # of peft, in every run
        if arguments.adapter is None:
            with as_usage_error(ValueError):
                return get_peft_model(base, config, adapter_name=ADAPTER)
        with as_usage_error(*ADAPTER_ERRORS, about=f"adapter={arguments.adapter} cannot be loaded:"):
            return PeftModel.from_pretrained(base, arguments.adapter, adapter_name=ADAPTER, is_trainable=True)
