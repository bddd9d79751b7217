"""From mean gates to a plain LoRA: the weights and the configuration of an adapter that PEFT knows without us.

    A' = A [E·R, D]     B' = [ḡ_1 B_1 … ḡ_E B_E] [F, E·R]     r' = E·R     alpha' = alpha·E

so that alpha' / r' = alpha / R. Rank-stabilised, the scaling is alpha / √R, and alpha' = alpha·√E keeps it. The same
holds for rank_pattern and alpha_pattern.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import get_peft_model_state_dict
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loramoe.export.adapted import Adapted, adapted
from loramoe.tuner.config import LoraMoeConfig

# Fields that mean in LoRA what they mean in LoRAMoE.
SHARED_FIELDS: tuple[str, ...] = ("base_model_name_or_path", "exclude_modules", "layers_pattern", "layers_to_transform")
SHARED_FIELDS += ("lora_dropout", "modules_to_save", "revision", "target_modules", "task_type", "use_rslora")


def plain_lora(model: Any, mean_gates: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The plain LoRA that the active adapter would be if its gates were constant.

    Args:
        model: A PeftModel whose one active adapter is of LoRAMoE.
        mean_gates: Gates [E] of each adapted linear, by its name in the base model.

    Returns:
        The content of adapter_config.json, and the tensors of adapter_model.safetensors by name, on the CPU, in the
        dtypes that they have in the model. Those of `modules_to_save` are among them.

    Raises:
        ExportError: If the adapter is none that can be exported.
    """
    adapter = adapted(model)
    conv1d = any(isinstance(layer.base_layer, Conv1D) for layer in adapter.layers.values())
    config = {**lora_config(adapter.config), "fan_in_fan_out": conv1d}
    saved = get_peft_model_state_dict(model, adapter_name=adapter.name)
    weights = {name: tensor for name, tensor in saved.items() if ".loramoe_" not in name}
    for linear, (A, B) in lora_weights(adapter, mean_gates).items():
        weights[f"base_model.model.{linear}.lora_A.weight"] = A
        weights[f"base_model.model.{linear}.lora_B.weight"] = B
    # Cloned, because safetensors refuses tensors that share memory.
    return config, {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}


def lora_config(config: LoraMoeConfig) -> dict[str, Any]:
    """The configuration of a plain LoRA of rank E·R with the same scaling.

    Args:
        config: Configuration of a LoRAMoE adapter.

    Returns:
        Fields of a LoraConfig, ready for JSON. Only those that say something: older PEFTs and other tools do not know
        the newest ones.
    """
    E = config.lora_nums
    grown = math.sqrt(E) if config.use_rslora else E
    fields: dict[str, Any] = {name: getattr(config, name) for name in SHARED_FIELDS}
    fields |= {
        "alpha_pattern": {name: _plain(alpha * grown) for name, alpha in config.alpha_pattern.items()},
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": _plain(config.lora_alpha * grown),
        "peft_type": "LORA",
        "r": config.r * E,
        "rank_pattern": {name: rank * E for name, rank in config.rank_pattern.items()},
    }
    return {name: sorted(v) if isinstance(v, set) else v for name, v in sorted(fields.items()) if v is not None}


def _plain(alpha: float) -> float:
    """A whole number as an int: tools that declare lora_alpha as one need not be tested."""
    return int(alpha) if float(alpha).is_integer() else alpha


def lora_weights(adapter: Adapted, mean_gates: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of the plain LoRA.

    Args:
        adapter: The adapter.
        mean_gates: Gates [E] of each adapted linear, by its name in the base model.

    Returns:
        For each linear A' [E·R, D], which is the adapter's own, and B' [F, E·R], each in its dtype in the model.
    """
    weights = {}
    for linear, layer in adapter.layers.items():
        _, A, B = layer.weights(adapter.name)
        gates_E = mean_gates[linear].to(B.device, torch.float64)
        columns = gates_E.repeat_interleave(layer.r[adapter.name])  # [E·R]
        weights[linear] = (A.detach(), (B.detach().double() * columns).to(B.dtype))
    return weights


@contextmanager
def as_plain_lora(model: Any, mean_gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, the active adapter computes what its export does: to measure it without loading the model twice.

    A plain LoRA of rank E·R is a mixture of one expert of that rank, whose gate is 1 whatever its router says. So the
    router gives way to one of a single expert, and B to the export's B'; afterwards both are back.

    Args:
        model: A PeftModel whose one active adapter is of LoRAMoE.
        mean_gates: Gates [E] of each adapted linear, by its name in the base model.

    Yields:
        Nothing.
    """
    adapter = adapted(model)
    kept: list[tuple[Any, nn.Parameter, nn.Parameter]] = []
    try:
        for linear, (_, B) in lora_weights(adapter, mean_gates).items():
            layer = adapter.layers[linear]
            experts: Any = layer.loramoe_experts[adapter.name]
            kept.append((experts, experts.router, experts.B))
            experts.router = nn.Parameter(experts.router.new_zeros(1, layer.in_features), False)
            experts.B = nn.Parameter(B, False)
        yield
    finally:
        for experts, router, B in kept:
            experts.router, experts.B = router, B
