"""Registers LoRAMoE with the installed peft and trl, right after their import (see `loramoe/__init__.py`)."""

from __future__ import annotations

from loramoe.compat.peft import extend_load_adapter, extend_lora_config, extend_peft_type, extend_set_state_dict
from loramoe.compat.trainers import extend_sft_trainer


def register() -> None:
    """Register the method with peft: type, classes, `LoraConfig(lora_nums=…)`, and adapters of earlier formats."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils.peft_types import PeftType
    from transformers.integrations.peft import PeftAdapterMixin

    extend_peft_type(PeftType)
    from loramoe.tuner.config import LoraMoeConfig
    from loramoe.tuner.model import LoraMoeModel
    from loramoe.tuner.state_dict import current_names, validate_state_dict

    if PeftType("LORAMOE") not in PEFT_TYPE_TO_CONFIG_MAPPING:
        from peft.utils import register_peft_method

        register_peft_method(name="loramoe", config_cls=LoraMoeConfig, model_cls=LoraMoeModel)
    for public in (LoraMoeConfig, LoraMoeModel):
        setattr(peft, public.__name__, public)
    extend_lora_config(peft.LoraConfig)
    extend_set_state_dict(current_names, validate_state_dict)
    extend_load_adapter(PeftAdapterMixin, current_names, validate_state_dict)


def register_sft_trainer(sft_trainer: type) -> None:
    """Have TRL's SFTTrainer add the constraint to its loss."""
    from loramoe.tuner.forward_pass import collect_aux_loss

    extend_sft_trainer(sft_trainer, collect_aux_loss)
