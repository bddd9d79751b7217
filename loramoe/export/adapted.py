"""The adapter that is exported, and the model that carries it: what may be asked of them, and how they are run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from loramoe.tuner.config import LoraMoeConfig
from loramoe.tuner.layer import LoraMoeLayer

# What a batch holds for the measuring alone; everything else goes into the model.
NOT_FOR_THE_MODEL = ("labels", "task_types")


class ExportError(ValueError):
    """An adapter, a batch or a folder that an export cannot be made of; says which, why, and what to do."""


class Adapted(NamedTuple):
    """A LoRAMoE adapter at work in a model.

    Attributes:
        model: The model with the adapter.
        name: Name of the adapter.
        config: Its configuration.
        layers: The adapted linears, by their names in the base model.
    """

    model: Any
    name: str
    config: LoraMoeConfig
    layers: Mapping[str, LoraMoeLayer]


def adapted(model: Any) -> Adapted:
    """Finds the adapter that is at work in a model.

    Args:
        model: A PeftModel whose one active adapter is of LoRAMoE.

    Returns:
        The adapter.

    Raises:
        ExportError: If it is no PeftModel, several adapters are active or none is, or the active one is of another
            kind or not in memory.
    """
    if not isinstance(model, PeftModel):
        raise ExportError(
            f"export_lora takes a PeftModel; got {type(model).__name__}. Load the adapter with "
            "PeftModel.from_pretrained(base, adapter)."
        )
    active = list(model.active_adapters)
    if len(active) != 1:
        raise ExportError(
            f"one adapter is exported at a time; active are {active}. Choose one with model.set_adapter(name)."
        )
    name = active[0]
    config = model.peft_config[name]
    if not isinstance(config, LoraMoeConfig):
        raise ExportError(f"adapter {name!r} is of type {config.peft_type.value}; only LoRAMoE needs this export.")
    modules = model.get_base_model().named_modules()
    layers = {linear: module for linear, module in modules if isinstance(module, LoraMoeLayer)}
    layers = {linear: layer for linear, layer in layers.items() if name in layer.loramoe_experts}
    if any(not layer.adapters_in_use for layer in layers.values()):
        raise ExportError(f"adapter {name!r} is disabled. Call export_lora outside of disable_adapter().")
    _check_in_memory(name, layers)
    return Adapted(model, name, config, layers)


def _check_in_memory(name: str, layers: Mapping[str, LoraMoeLayer]) -> None:
    """Refuses offloaded weights: accelerate would undo any change of them, such as that of `as_plain_lora`."""
    for layer in layers.values():
        if any(weight.is_meta for weight in layer.weights(name)):
            raise ExportError(
                f"weights of adapter {name!r} are on the meta device: offloaded, or not loaded. Load the model whole."
            )


@contextmanager
def in_evaluation(model: Any) -> Iterator[None]:
    """Within, the model is in evaluation mode; afterwards as before, also in which parameters are trained.

    Args:
        model: The model; PEFT's `disable_adapter`, for one, leaves its adapter to be trained.

    Yields:
        Nothing.
    """
    training, trained = model.training, [(weight, weight.requires_grad) for weight in model.parameters()]
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for weight, requires_grad in trained:
            if weight.requires_grad != requires_grad:  # of ZeRO-3's it must not even be asked for
                weight.requires_grad_(requires_grad)


def run(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """The model's logits of a batch.

    Args:
        model: The model.
        batch: `input_ids` [B, S] and what else the model takes; labels and task types are left out.

    Returns:
        Logits [B, S, V].
    """
    inputs = {name: value for name, value in batch.items() if name not in NOT_FOR_THE_MODEL}
    logits: Tensor = model(**{**inputs, "use_cache": False}).logits
    return logits


def on_device_of(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch on the model's device.

    Args:
        model: The model.
        batch: Tensors, and maybe other values, by name.

    Returns:
        The same, the tensors on the device.

    Raises:
        ExportError: If the batch holds no `input_ids`.
    """
    if "input_ids" not in batch:
        raise ExportError(
            f"a batch must hold input_ids; got {sorted(batch)}. Use loramoe.data.SftCollator, or a collator like it."
        )
    return {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def real_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """Which tokens of a batch are text and not padding.

    Args:
        batch: `input_ids` [B, S], and `attention_mask` [B, S] unless every token is real.

    Returns:
        Bool [B, S].

    Raises:
        ExportError: If the mask has another shape.
    """
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    if mask.shape != batch["input_ids"].shape:
        raise ExportError(
            f"attention_mask must be [B, S], as input_ids are, to tell padding from text; got {list(mask.shape)} "
            f"beside {list(batch['input_ids'].shape)}."
        )
    return mask.bool()
