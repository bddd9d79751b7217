"""The methods that are compared. All adapters have about the same number of parameters and the same effective scale.

LoRAMoE adapts every linear layer with 8 experts of rank 2, scaled by 16 / 2. At the start each gate is about 1/8, so
the sum of the experts is scaled by about 1. LoRA of rank 21 is scaled by 21 / 21 = 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from loramoe import LoraMoeConfig

TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DROPOUT: Final = 0.05


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        label: Its name in figures and tables.
        kind: What is trained.
        blc_weight: Weight of the balancing constraint.
        blc_alpha: Its degree of imbalance.
        equal_gates: Fix all gates at 1 / E: the experts are then one LoRA of their total rank.
    """

    label: str
    kind: Literal["full", "lora", "loramoe"]
    blc_weight: float = 0.0
    blc_alpha: float = 0.1
    equal_gates: bool = False


METHODS: Final[Mapping[str, Method]] = {
    "full": Method("full fine-tuning", "full"),
    "lora": Method("LoRA", "lora"),
    "loramoe": Method("LoRAMoE", "loramoe", blc_weight=0.1),
    "equal_gates": Method("equal, frozen gates", "loramoe", equal_gates=True),
    "no_constraint": Method("LoRAMoE without the constraint", "loramoe"),
    "strong_constraint": Method("LoRAMoE, blc_alpha .5", "loramoe", blc_weight=0.1, blc_alpha=0.5),
}


def apply_method(model: Any, name: str) -> Any:
    """Add to a base model what a method trains.

    Args:
        model: The base model, in float32.
        name: One of METHODS.

    Returns:
        The model to train: the base model itself for full fine-tuning, else a PeftModel.
    """
    method = METHODS[name]
    if method.kind == "full":
        return model
    shared: dict[str, Any] = {"target_modules": list(TARGETS), "lora_dropout": DROPOUT, "task_type": "CAUSAL_LM"}
    if method.kind == "lora":
        return get_peft_model(model, LoraConfig(r=21, lora_alpha=21, **shared))
    constraint = {"blc_weight": method.blc_weight, "blc_alpha": method.blc_alpha, "blc_target": "match"}
    model = get_peft_model(model, LoraMoeConfig(r=2, lora_alpha=16, lora_nums=8, **constraint, **shared))
    if method.equal_gates:
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(".router"):
                parameter.data.zero_()
                parameter.requires_grad_(False)
    return model


@contextmanager
def scaled_update(model: Any, base: Mapping[str, Tensor], share: float) -> Iterator[None]:
    """Interpolate between the base model and the tuned model within a block: W0 + share · (W − W0).

    Args:
        model: The tuned model. Of an adapter, the scaling is multiplied by `share`.
        base: State of the base model; used for full fine-tuning only.
        share: From 0 (the base model) to 1 (the tuned model).
    """
    if isinstance(model, PeftModel):
        layers = [module for module in model.modules() if isinstance(getattr(module, "scaling", None), dict)]
        saved: Any = [layer.scaling["default"] for layer in layers]
        for layer, scaling in zip(layers, saved, strict=True):
            layer.scaling["default"] = share * scaling
        yield
        for layer, scaling in zip(layers, saved, strict=True):
            layer.scaling["default"] = scaling
        return
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.lerp(base[name], value, share) for name, value in saved.items()})
    yield
    model.load_state_dict(saved)


def trainable_parameters(model: Any) -> int:
    """Return how many parameters are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
