"""The plugin: axolotl's names of a LoRA's hyper-parameters, and LoRAMoE's own, make a LoraMoeConfig.

axolotl asks its plugins for adapters that it does not know (`adapter: loramoe`), for further arguments of a
configuration, and for a collator. Nothing of axolotl is patched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from peft import PeftModel, get_peft_model
from pydantic import BaseModel
from torch import nn

from loramoe import LoraMoeConfig
from loramoe.data import PackedCollator
from loramoe.tuner.layer import MERGE_REFUSED

ADAPTER = "loramoe"

# What axolotl's configuration calls the fields of a LoraMoeConfig.
FIELDS = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_exclude_modules": "exclude_modules",
    "lora_modules_to_save": "modules_to_save",
    "lora_rank_pattern": "rank_pattern",
    "lora_alpha_pattern": "alpha_pattern",
    "peft_layers_to_transform": "layers_to_transform",
    "peft_layers_pattern": "layers_pattern",
    "peft_use_rslora": "use_rslora",
    "lora_nums": "lora_nums",
    "blc_alpha": "blc_alpha",
    "blc_weight": "blc_weight",
    "blc_target": "blc_target",
    "blc_importance": "blc_importance",
    "expert_types": "expert_types",
}

# What axolotl knows of LoRA and LoRAMoE does not have.
FOREIGN = (
    "peft_use_dora",
    "peft_init_lora_weights",
    "peft_layer_replication",
    "peft_trainable_token_indices",
    "peft_ensure_weight_tying",
    "peft_autocast_adapter_dtype",
    "peft",
    "loftq_config",
    "lora_target_parameters",
    "lora_fan_in_fan_out",
    "relora",
)


class LoraMoeArgs(BaseModel):
    """What the plugin adds to axolotl's configuration. LoraMoeConfig has the defaults, and checks the values."""

    lora_nums: int | None = None
    blc_alpha: float | None = None
    blc_weight: float | None = None
    blc_target: Literal["paper", "match"] | None = None
    blc_importance: Literal["mean", "sum"] | None = None
    expert_types: list[int] | None = None


class PackingCollator:
    """Of the samples that axolotl's multipack sampler put together, one row with a task type for each of them.

    Args:
        tokenizer: Not needed: a packed row has no padding.
        options: Nor are axolotl's options for padding.
    """

    def __init__(self, tokenizer: object, **options: object) -> None:
        self.pack = PackedCollator()

    def __call__(self, features: Sequence[Any]) -> dict[str, Any]:
        """Makes a batch of B lists of samples, or of one list, as `loramoe.data.PackedCollator` does."""
        return self.pack(features)


class LoraMoePlugin(BasePlugin):  # type: ignore[misc]  # axolotl is not typed
    """Trains `adapter: loramoe`."""

    ours = False  # whether the adapter's name is lent, while a model is loaded

    def register(self, cfg: Mapping[str, Any]) -> None:
        """Refuses `axolotl merge-lora`, which would warn, and save the base model as the merged one.

        Raises:
            NotImplementedError: If that is what runs.
        """
        if cfg.get("merge_lora") and cfg.get("adapter") == ADAPTER:
            raise NotImplementedError(MERGE_REFUSED)

    def get_input_args(self) -> str:
        """Where axolotl finds the arguments that this plugin adds."""
        return "integrations.axolotl.plugin.LoraMoeArgs"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        """Has `adapter: loramoe` accepted."""
        return [AdapterCapabilities(name=ADAPTER)]

    def get_training_args(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Has the Trainer keep the column `task_types`, which not every model's forward declares."""
        return {"remove_unused_columns": False} if cfg["adapter"] == ADAPTER else {}

    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> tuple[type, dict[str, Any]] | None:
        """Our collator for packed samples. axolotl's own keeps task types where each sample has a row."""
        packed = cfg.eval_sample_packing if is_eval else cfg.sample_packing
        return (PackingCollator, {}) if packed and cfg.adapter == ADAPTER else None

    def pre_model_load(self, cfg: Any) -> None:
        """Lends axolotl a name of its own: for these two alone it quantises a base and prepares it for training."""
        self.ours = cfg.adapter == ADAPTER
        if self.ours:
            cfg.adapter = "qlora" if cfg.load_in_4bit else "lora"

    def pre_lora_load(self, cfg: Any, model: nn.Module) -> None:
        """Takes the name back: axolotl's loader knows that only its plugins can load `loramoe`."""
        if self.ours:
            cfg.adapter = ADAPTER

    def load_adapter(
        self, model: nn.Module, cfg: Any, inference: bool = False, config_only: bool = False
    ) -> tuple[nn.Module | None, LoraMoeConfig] | None:
        """Puts a new adapter into the model, or the one in `lora_model_dir`.

        Args:
            model: The base model.
            cfg: axolotl's configuration.
            inference: Whether the adapter is loaded to be used, not trained.
            config_only: Whether only the adapter's configuration is wanted.

        Returns:
            The adapted model (None if not wanted) and the adapter's configuration; None if the adapter is not ours.
        """
        if cfg.adapter != ADAPTER:
            return None
        config = adapter_config(cfg)
        if config_only:
            return None, config
        if cfg.lora_model_dir:
            return PeftModel.from_pretrained(model, cfg.lora_model_dir, is_trainable=not inference), config
        adapted = get_peft_model(model, config)
        adapted.print_trainable_parameters()
        return adapted, config


def adapter_config(cfg: Mapping[str, Any]) -> LoraMoeConfig:
    """The adapter that an axolotl configuration describes.

    Args:
        cfg: axolotl's configuration, in which a name that is not set gives None.

    Returns:
        Its LoraMoeConfig.

    Raises:
        ValueError: If it asks for what LoRAMoE does not have, or for values that contradict each other.
    """
    foreign = {name: cfg[name] for name in FOREIGN if cfg[name]}
    if foreign:
        raise ValueError(
            f"adapter: {ADAPTER} does not know {', '.join(f'{k}={v!r}' for k, v in foreign.items())}. Leave it out, or "
            "set adapter: lora."
        )
    given = {field: cfg[name] for name, field in FIELDS.items() if cfg[name] is not None}
    if cfg["lora_target_linear"]:
        given["target_modules"] = "all-linear"
    config = LoraMoeConfig(task_type="CAUSAL_LM", **given)
    pieces = cfg["context_parallel_size"] or 1
    if config.blc_weight > 0 and (cfg["use_eaft"] or pieces > 1):
        raise ValueError(
            "the balancing constraint would be lost: use_eaft computes the loss without the model's, and "
            f"context_parallel_size cuts samples into pieces; got use_eaft={cfg['use_eaft']}, "
            f"context_parallel_size={pieces}. Leave both out, or set blc_weight: 0."
        )
    return config
