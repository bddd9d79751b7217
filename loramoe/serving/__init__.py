"""A LoRAMoE adapter as a model of its own: configuration and model classes that transformers and vLLM find by name.

`import loramoe` adds the names of the configurations to AutoConfig, and imports nothing for it. When one is asked for,
`loramoe.serving.model` is imported. vLLM does that at its start, by the entry point `vllm.general_plugins`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any, Final

# Of each family of models its type and the names of its classes: configuration, base model, causal LM.
FAMILIES: Final = {
    "llama": ("LlamaConfig", "LlamaModel", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralModel", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2Model", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3Model", "Qwen3ForCausalLM"),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3TextModel", "Gemma3ForCausalLM"),
}
TYPE_PREFIX: Final = "loramoe_"  # of a model type: loramoe_llama
CLASS_PREFIX: Final = "LoraMoe"  # of a class: LoraMoeLlamaForCausalLM


def __getattr__(name: str) -> Any:
    if not name.startswith(CLASS_PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("loramoe.serving.model"), name)


def announce(configuration_auto: ModuleType) -> None:
    """Adds the names of the configurations to AutoConfig, which will look for the classes in this module.

    AutoConfig.register takes classes, which cannot be made yet: those of transformers that they extend import the very
    module that is being imported now.

    Args:
        configuration_auto: `transformers.models.auto.configuration_auto`.
    """
    shown_names = vars(configuration_auto).get("MODEL_NAMES_MAPPING", {})  # of transformers 4; 5 has none
    for family, (config, *_) in FAMILIES.items():
        shown_names[TYPE_PREFIX + family] = f"LoRAMoE {family}"
        configuration_auto.CONFIG_MAPPING_NAMES[TYPE_PREFIX + family] = CLASS_PREFIX + config
        configuration_auto.CONFIG_MAPPING._modules[TYPE_PREFIX + family] = sys.modules[__name__]


def register() -> None:
    """Registers the classes with AutoConfig, AutoModel and AutoModelForCausalLM."""
    importlib.import_module("loramoe.serving.model")
