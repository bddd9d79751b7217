"""The base model, its tokenizer, and the LoRAMoE adapter on it, as the flags ask for them."""

from __future__ import annotations

import logging
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from loramoe import LoraMoeConfig
from loramoe.training.arguments import ModelArguments, comma_list
from loramoe.training.checkpoints import ADAPTER

logger = logging.getLogger(__name__)


def adapter_config(arguments: ModelArguments) -> LoraMoeConfig:
    """The adapter's configuration: of the flags, or of the adapter to continue from.

    Args:
        arguments: The flags.

    Returns:
        The configuration.

    Raises:
        ValueError: If values contradict each other, or peft_path holds another kind of adapter.
    """
    wished = LoraMoeConfig(
        task_type="CAUSAL_LM",
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        lora_nums=arguments.lora_nums,
        blc_alpha=arguments.blc_alpha,
        blc_weight=arguments.blc_weight,
        expert_types=arguments.expert_type_list(),
        blc_target=arguments.blc_target,
        target_modules=comma_list(arguments.trainable),
        modules_to_save=comma_list(arguments.modules_to_save),
    )
    if arguments.peft_path is None:
        return wished
    config = PeftConfig.from_pretrained(arguments.peft_path)
    if not isinstance(config, LoraMoeConfig):
        raise ValueError(
            f"peft_path must hold a LoRAMoE adapter; {arguments.peft_path} holds one of type {config.peft_type}. "
            "Correct the path, or leave it out to start a new adapter."
        )
    _tell_differences(wished, config)
    return config


def _tell_differences(wished: LoraMoeConfig, config: LoraMoeConfig) -> None:
    names = (
        "r",
        "lora_alpha",
        "lora_dropout",
        "lora_nums",
        "blc_alpha",
        "blc_weight",
        "types_of_experts",
        "blc_target",
    )
    other = [f"{n}={getattr(config, n)!r}" for n in names if getattr(config, n) != getattr(wished, n)]
    if other:
        logger.warning("peft_path: the adapter's own configuration replaces the flags: %s", ", ".join(other))


def load_tokenizer(arguments: ModelArguments) -> Any:
    """The tokenizer of the flags, or else of the base model."""
    return AutoTokenizer.from_pretrained(arguments.tokenizer_name_or_path or arguments.model_name_or_path)


def load_base(arguments: ModelArguments, tokenizer: Any, checkpointing: bool) -> Any:
    """Loads the base model.

    Args:
        arguments: The flags.
        tokenizer: Its tokenizer, to check that they fit.
        checkpointing: Whether gradient checkpointing will be used; a quantised model needs to know.

    Returns:
        The model, in 4 or 8 bits if asked for.

    Raises:
        ValueError: If the tokenizer has more tokens than the model.
    """
    options: dict[str, Any] = {"dtype": _dtype(arguments.torch_dtype)}
    if arguments.flash_attn:
        options["attn_implementation"] = "flash_attention_2"
    if arguments.load_in_kbits in (4, 8):
        options["quantization_config"] = BitsAndBytesConfig(**quantisation(arguments))
    model = AutoModelForCausalLM.from_pretrained(arguments.model_name_or_path, **options)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
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


def quantisation(arguments: ModelArguments) -> dict[str, Any]:
    """How bitsandbytes is to quantise the base model.

    Args:
        arguments: The flags, with load_in_kbits 4 or 8.

    Returns:
        Arguments of BitsAndBytesConfig.
    """
    if arguments.load_in_kbits == 8:
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_compute_dtype": torch.float32 if arguments.torch_dtype == "auto" else _dtype(arguments.torch_dtype),
        "bnb_4bit_use_double_quant": arguments.double_quant,
        "bnb_4bit_quant_type": arguments.quant_type,
    }


def add_adapter(base: Any, arguments: ModelArguments, config: LoraMoeConfig) -> PeftModel:
    """Puts a new adapter on a base model, or the one to continue from.

    Args:
        base: The base model.
        arguments: The flags.
        config: What `adapter_config` returned.

    Returns:
        The model to train; the adapter is named `sft_lora_model`.
    """
    if arguments.peft_path is None:
        return get_peft_model(base, config, adapter_name=ADAPTER)
    return PeftModel.from_pretrained(base, arguments.peft_path, adapter_name=ADAPTER, is_trainable=True)
