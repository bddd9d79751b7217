"""The base model, its tokenizer, and the LoRAMoE adapter on it, as the flags ask for them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from loramoe import LoraMoeConfig
from loramoe.training.checkpoint import ADAPTER
from loramoe.training.model_arguments import ModelArguments
from loramoe.utils import ADAPTER_ERRORS, UsageError, as_usage_error, comma_list

logger = logging.getLogger(__name__)


def adapter_config(arguments: ModelArguments) -> LoraMoeConfig:
    """The adapter's configuration: of the flags, or of the adapter to continue from.

    Args:
        arguments: The flags.

    Returns:
        The configuration.

    Raises:
        UsageError: If values contradict each other, or peft_path holds no adapter, or another kind of adapter.
    """
    if arguments.peft_path is not None:
        config = _saved_config(arguments.peft_path)
        _tell_differences(arguments, config)
        return config
    return _wished_config(arguments)


def _wished_config(arguments: ModelArguments) -> LoraMoeConfig:
    with as_usage_error(ValueError):
        return LoraMoeConfig(
            task_type="CAUSAL_LM",
            r=arguments.lora_rank,
            lora_alpha=arguments.lora_alpha,
            lora_dropout=arguments.lora_dropout,
            lora_nums=arguments.lora_nums,
            blc_alpha=arguments.blc_alpha,
            blc_weight=arguments.blc_weight,
            expert_types=arguments.expert_type_list(),
            blc_target=arguments.blc_target,
            blc_importance=arguments.blc_importance,
            target_modules=comma_list(arguments.trainable),
            modules_to_save=comma_list(arguments.modules_to_save),
        )


def _saved_config(peft_path: str) -> LoraMoeConfig:
    try:
        config = PeftConfig.from_pretrained(peft_path)
    except ADAPTER_ERRORS as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(
            f"peft_path={peft_path} holds no adapter ({reason}). Correct the path, or leave it out to start a new one."
        ) from error
    if not isinstance(config, LoraMoeConfig):
        raise UsageError(
            f"peft_path must hold a LoRAMoE adapter; {peft_path} holds one of type {config.peft_type}. "
            "Correct the path, or leave it out to start a new adapter."
        )
    return config


def _tell_differences(arguments: ModelArguments, config: LoraMoeConfig) -> None:
    wished = _wished_config(arguments)
    names = [
        "r",
        "lora_alpha",
        "lora_dropout",
        "lora_nums",
        "blc_alpha",
        "blc_weight",
        "types_of_experts",
        "blc_target",
        "blc_importance",
    ]
    names += ["target_modules"] if wished.target_modules else []
    names += ["modules_to_save"] if wished.modules_to_save else []
    other = {n: getattr(config, n) for n in names if _comparable(config, n) != _comparable(wished, n)}
    if other:
        told = ", ".join(f"{n}={sorted(v) if isinstance(v, set) else v!r}" for n, v in other.items())
        logger.warning("peft_path: the adapter's own configuration replaces the flags: %s", told)


def _comparable(config: LoraMoeConfig, name: str) -> Any:
    value = getattr(config, name)
    return set(value) if name == "modules_to_save" and value else value


def load_tokenizer(arguments: ModelArguments) -> Any:
    """The tokenizer of the flags, or else of the base model.

    Args:
        arguments: The flags.

    Returns:
        The tokenizer.

    Raises:
        UsageError: If there is none of this name, or it could not be saved beside the adapter.
    """
    name = arguments.tokenizer_name_or_path or arguments.model_name_or_path
    with as_usage_error(OSError, ValueError, about=f"the tokenizer {name} cannot be loaded:"):
        tokenizer = AutoTokenizer.from_pretrained(name)
    # Each of several chat templates is saved as a file of its name: transformers 4 follows "../", 5 refuses to save.
    templates = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    outside = [template for template in templates if Path(template).name != template]
    if outside:
        raise UsageError(
            f"the tokenizer {name} has a chat template of the name {outside[0]!r}, which would be saved outside the "
            "adapter's folder. Rename it in tokenizer_config.json, and distrust where it comes from."
        )
    return tokenizer


def load_base(arguments: ModelArguments, tokenizer: Any, checkpointing: bool, bf16: bool = False) -> Any:
    """Loads the base model.

    Args:
        arguments: The flags.
        tokenizer: Its tokenizer, to check that they fit.
        checkpointing: Whether gradient checkpointing will be used; a quantised model needs to know.
        bf16: Whether the training is in bfloat16; so then, by default, is the arithmetic of a 4-bit model.

    Returns:
        The model, in 4 or 8 bits if asked for.

    Raises:
        UsageError: If there is no model of this name, or the tokenizer has more tokens than it.
    """
    options: dict[str, Any] = {"dtype": _dtype(arguments.torch_dtype)}
    if arguments.flash_attn:
        options["attn_implementation"] = "flash_attention_2"
    if arguments.load_in_kbits in (4, 8):
        options["quantization_config"] = BitsAndBytesConfig(**quantisation(arguments, bf16))
    name = arguments.model_name_or_path
    with as_usage_error(OSError, ValueError, about=f"model_name_or_path={name} cannot be loaded:"):
        model = AutoModelForCausalLM.from_pretrained(name, **options)
    rows = model.config.get_text_config().vocab_size  # ZeRO-3 leaves no rows in the embedding itself
    if len(tokenizer) > rows:
        raise UsageError(
            f"the tokenizer has {len(tokenizer)} tokens, the model's embedding only {rows} rows. "
            "Set tokenizer_name_or_path to the tokenizer that the model was trained with."
        )
    if arguments.load_in_kbits in (4, 8):
        # use_reentrant=True would leave the routers without gradient.
        reentrant = {"use_reentrant": False}
        model = prepare_model_for_kbit_training(model, checkpointing, gradient_checkpointing_kwargs=reentrant)
    return model


def _dtype(name: str) -> Any:
    return name if name == "auto" else getattr(torch, name)


def quantisation(arguments: ModelArguments, bf16: bool = False) -> dict[str, Any]:
    """How bitsandbytes is to quantise the base model.

    Args:
        arguments: The flags, with load_in_kbits 4 or 8.
        bf16: As of `load_base`.

    Returns:
        Arguments of BitsAndBytesConfig.
    """
    if arguments.load_in_kbits == 8:
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_compute_dtype": _compute_dtype(arguments, bf16),
        "bnb_4bit_use_double_quant": arguments.double_quant,
        "bnb_4bit_quant_type": arguments.quant_type,
    }


def _compute_dtype(arguments: ModelArguments, bf16: bool) -> torch.dtype:
    if arguments.torch_dtype != "auto":
        dtype: torch.dtype = getattr(torch, arguments.torch_dtype)
        return dtype
    if bf16:
        return torch.bfloat16
    name = arguments.model_name_or_path
    with as_usage_error(OSError, ValueError, about=f"model_name_or_path={name} cannot be loaded:"):
        saved = AutoConfig.from_pretrained(name)
    return saved.get_text_config().dtype or torch.float32


def add_adapter(base: Any, arguments: ModelArguments, config: LoraMoeConfig) -> PeftModel:
    """Puts a new adapter on a base model, or the one to continue from.

    Args:
        base: The base model.
        arguments: The flags.
        config: What `adapter_config` returned.

    Returns:
        The model to train; the adapter is named `sft_lora_model`.

    Raises:
        UsageError: If the base model has no linears of the names in `trainable`, or the adapter to continue from is
            damaged, or was trained on another base model.
    """
    if arguments.peft_path is None:
        with as_usage_error(ValueError):
            return get_peft_model(base, config, adapter_name=ADAPTER)
    with as_usage_error(*ADAPTER_ERRORS, about=f"peft_path={arguments.peft_path} cannot be loaded:"):
        return PeftModel.from_pretrained(base, arguments.peft_path, adapter_name=ADAPTER, is_trainable=True)
