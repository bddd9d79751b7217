"""Plug-in for axolotl: `plugins: [loramoe.integrations.axolotl.LoraMoePlugin]` and `adapter: loramoe`.

axolotl asks its plug-ins for adapters, arguments and collators that it does not know. Nothing of axolotl is patched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from axolotl import prompt_strategies
from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from axolotl.prompt_tokenizers import PromptTokenizingStrategy
from peft import PeftModel, get_peft_model
from pydantic import BaseModel
from torch import nn

from loramoe import LoraMoeConfig
from loramoe.data import PackedCollator
from loramoe.tuner.layer import MERGE_REFUSED

# Flags of LoRA that LoRAMoE does not have.
UNSUPPORTED: tuple[str, ...] = ("peft", "loftq_config", "lora_target_parameters", "lora_fan_in_fan_out", "relora")
UNSUPPORTED += ("peft_use_dora", "peft_layer_replication", "peft_trainable_token_indices", "peft_ensure_weight_tying")
OTHER_LOSSES = ("rl", "use_eaft", "kd_trainer", "reward_model", "process_reward_model")


class LoraMoeArgs(BaseModel):  # type: ignore[misc]  # pydantic is not typed here
    """Flags that the plug-in adds; LoraMoeConfig has the defaults and checks the values."""

    lora_nums: int | None = None
    blc_alpha: float | None = None
    blc_weight: float | None = None
    blc_target: Literal["paper", "match"] | None = None
    blc_importance: Literal["mean", "sum"] | None = None
    expert_types: list[int] | None = None


class PackingCollator(PackedCollator):
    """Makes one row of the samples that axolotl's sampler put together, with the task type of each."""

    def __init__(self, *arguments: object, **options: object) -> None:
        """Takes what axolotl passes to its own collators, which is about padding."""
        super().__init__()


class LoraMoePlugin(BasePlugin):  # type: ignore[misc]  # axolotl is not typed
    """Trains `adapter: loramoe`; axolotl's base class describes the methods."""

    ours = False

    def register(self, cfg: Mapping[str, Any]) -> None:
        """Refuses `axolotl merge-lora`, which would save the base model as the merged one."""
        if cfg.get("merge_lora") and cfg.get("adapter") == "loramoe":
            raise NotImplementedError(MERGE_REFUSED)

    def get_input_args(self) -> str:
        """Names the class of the flags."""
        return f"{__name__}.LoraMoeArgs"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        """Makes axolotl accept `adapter: loramoe`."""
        return [AdapterCapabilities(name="loramoe")]

    def get_training_args(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps the column `task_types`, which a model's forward may not declare."""
        return {"remove_unused_columns": False} if cfg["adapter"] == "loramoe" else {}

    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> tuple[type, dict[str, Any]] | None:
        """Chooses the collator of packed samples; for others axolotl's own keeps task types."""
        packed = cfg.eval_sample_packing if is_eval else cfg.sample_packing
        return (PackingCollator, {}) if packed and cfg.adapter == "loramoe" else None

    def pre_model_load(self, cfg: Any) -> None:
        """Sets a name that axolotl knows: only for these two does it quantise a base model and prepare it."""
        self.ours = cfg.adapter == "loramoe"
        if self.ours:
            cfg.adapter = "qlora" if cfg.load_in_4bit else "lora"

    def pre_lora_load(self, cfg: Any, model: nn.Module) -> None:
        """Sets the name back, so that axolotl asks this plug-in for the adapter."""
        if self.ours:
            cfg.adapter = "loramoe"

    def load_adapter(
        self, model: nn.Module, cfg: Any, inference: bool = False, config_only: bool = False
    ) -> tuple[nn.Module | None, LoraMoeConfig] | None:
        """Adds a new adapter to the model, or the one in `lora_model_dir`; None if the adapter is another."""
        if cfg.adapter != "loramoe":
            return None
        config = adapter_config(cfg)
        if config_only:
            return None, config
        if cfg.lora_model_dir:
            return PeftModel.from_pretrained(model, cfg.lora_model_dir, is_trainable=not inference), config
        return get_peft_model(model, config), config


def adapter_config(cfg: Mapping[str, Any]) -> LoraMoeConfig:
    """Makes the adapter's configuration of axolotl's, in which a flag that is not set is None.

    Raises:
        ValueError: If a flag asks for what LoRAMoE does not have, or would leave the constraint out of the loss.
    """
    foreign = [f"{name}={cfg[name]!r}" for name in UNSUPPORTED if cfg[name]]
    if cfg["peft_autocast_adapter_dtype"] is False:
        foreign.append("peft_autocast_adapter_dtype=False")
    if foreign:
        raise ValueError(f"adapter: loramoe does not support {', '.join(foreign)}. Leave it out, or set adapter: lora.")
    flags = [(field, prefix + field) for field in LoraMoeConfig.__annotations__ for prefix in ("", "lora_", "peft_")]
    given = {field: cfg[flag] for field, flag in flags if cfg[flag] is not None}
    if cfg["lora_target_linear"]:
        given["target_modules"] = "all-linear"
    config = LoraMoeConfig(task_type="CAUSAL_LM", **given)
    lost = [f"{name}={cfg[name]!r}" for name in OTHER_LOSSES if cfg[name]]
    if (cfg["context_parallel_size"] or 1) > 1:
        lost.append(f"context_parallel_size={cfg['context_parallel_size']}")
    if config.blc_weight > 0 and lost:
        raise ValueError(
            f"the constraint would not be in the loss with {', '.join(lost)}. Leave it out, or set blc_weight: 0."
        )
    return config


class TypedStrategy(PromptTokenizingStrategy):  # type: ignore[misc]  # axolotl is not typed
    """Tokenises samples as another strategy does, and keeps their task types."""

    def __init__(self, inner: PromptTokenizingStrategy) -> None:
        super().__init__(inner.prompter, inner.tokenizer, inner.train_on_inputs, inner.sequence_len)
        self.inner = inner
        self.filter_rows = inner.filter_rows

    @property
    def supports_batched(self) -> bool:
        """Whether `tokenize_prompt` is given columns of many samples."""
        return bool(self.inner.supports_batched)

    def tokenize_prompt(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """Tokenises a sample, or columns of samples; ValueError if they have no `task_type`."""
        if "task_type" not in prompt:
            raise ValueError(f"samples need a whole number 'task_type' each; got the columns {sorted(prompt)}. Add it.")
        return {**self.inner.tokenize_prompt(dict(prompt)), "task_types": prompt["task_type"]}


def load(tokenizer: Any, cfg: Any, ds_cfg: Mapping[str, Any]) -> TypedStrategy:
    """Makes the strategy of a data set with `type: loramoe.integrations.axolotl`.

    Its `input_transform` names the strategy of `axolotl.prompt_strategies` that tokenises; default: `chat_template`.
    """
    name = ds_cfg.get("input_transform") or "chat_template"
    inner = prompt_strategies.load(name, tokenizer, cfg, ds_cfg)
    if inner is None:
        raise ValueError(f"axolotl has no prompt strategy input_transform={name!r}. Set one, such as chat_template.")
    return TypedStrategy(inner)
