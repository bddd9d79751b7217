"""A LoRAMoE adapter as a model of its own: configuration and model classes that transformers and vLLM find by name.

`import loramoe` adds the names of the configurations to AutoConfig and imports nothing for it. `loramoe.serving.model`
is imported when one of its classes is asked for, or when vLLM loads the entry point `vllm.general_plugins`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any, Final

# The model type of each family and the names of its classes: configuration, decoder, causal language model.
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


def add_config_names(configuration_auto: ModuleType) -> None:
    """Adds the names of the configurations to AutoConfig, which then looks for the classes in this module.

    `AutoConfig.register` takes classes. They cannot exist yet, because the classes of transformers that they extend
    import `configuration_auto`, which is being imported now.
    """
    model_names = vars(configuration_auto).get("MODEL_NAMES_MAPPING", {})  # transformers 4 only
    for family, (config, *_) in FAMILIES.items():
        model_names[TYPE_PREFIX + family] = f"LoRAMoE {family}"
        configuration_auto.CONFIG_MAPPING_NAMES[TYPE_PREFIX + family] = CLASS_PREFIX + config
        configuration_auto.CONFIG_MAPPING._modules[TYPE_PREFIX + family] = sys.modules[__name__]


def register() -> None:
    """Registers the classes with AutoConfig, AutoModel and AutoModelForCausalLM: the entry point of vLLM."""
    importlib.import_module("loramoe.serving.model")
