"""Extends the installed `peft.tuners.lora`: a LoraConfig that is given `lora_nums` becomes the mixture of experts."""

from types import ModuleType

from loramoe.compat.peft import extend_lora_config


def extend(module: ModuleType) -> None:
    """`LoraConfig(lora_nums=8, blc_alpha=0.1, …)` makes a LoraMoeConfig; without lora_nums, nothing changes."""
    extend_lora_config(module.LoraConfig)
