"""The weights of an adapter by name: those of earlier formats renamed, and all of them checked against a model.

In a file, each adapted layer has three tensors: `….loramoe_experts.router` [E, D], `.A` [E·R, D] and `.B` [F, E·R].
LoRAMoE 0.1 wrote `….loramoe_A.weight` and so on. The original code wrote a tensor for each expert:
`….lora_route.weight` [E, D], `….lora_A{i}.weight` [R, D] and `….lora_B{i}.weight` [F, R].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from loramoe.tuner.layer import LoraMoeLayer

EXPERTS = "loramoe_experts"
PARTS = ("router", "A", "B")
ROUTER_OF_ORIGINAL = ".lora_route.weight"
_EXPERT_OF_ORIGINAL = re.compile(r"(?P<layer>.*)\.lora_(?P<part>A|B)(?P<index>\d{1,6})\.weight")
_PART_OF_0_1 = re.compile(r"(?P<layer>.*)\.loramoe_(?P<part>A|B|router)\.weight")


class CheckpointError(ValueError):
    """An adapter that does not fit a model or its own configuration; the message says why, and what to do."""


def current_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an adapter, of today, of LoRAMoE 0.1 or of the original code, by the names of today.

    Not one bit of them changes; the original's experts are stacked. CheckpointError if a layer lacks an expert.
    """
    renamed: dict[str, Tensor] = {}
    experts: dict[str, dict[str, dict[int, Tensor]]] = {}
    for name, tensor in weights.items():
        if match := _EXPERT_OF_ORIGINAL.fullmatch(name):
            experts.setdefault(match["layer"], {}).setdefault(match["part"], {})[int(match["index"])] = tensor
        elif name.endswith(ROUTER_OF_ORIGINAL):
            renamed[f"{name.removesuffix(ROUTER_OF_ORIGINAL)}.{EXPERTS}.router"] = tensor
        elif match := _PART_OF_0_1.fullmatch(name):
            renamed[f"{match['layer']}.{EXPERTS}.{match['part']}"] = tensor
        else:
            renamed[name] = tensor
    for layer, parts in experts.items():
        router = renamed.get(f"{layer}.{EXPERTS}.router")
        for part, dim in (("A", 0), ("B", 1)):
            renamed[f"{layer}.{EXPERTS}.{part}"] = _stack(f"{layer}.lora_{part}", parts.get(part, {}), router, dim)
    return renamed


def _stack(name: str, by_index: Mapping[int, Tensor], router: Tensor | None, dim: int) -> Tensor:
    expected = 0 if router is None else len(router)
    if sorted(by_index) != list(range(expected)) or not by_index:
        raise CheckpointError(
            f"{name} has the experts {sorted(by_index)}, and the router is for {expected}. Copy or download it again."
        )
    return torch.cat([by_index[index] for index in sorted(by_index)], dim=dim)


def validate_state_dict(
    model: nn.Module, weights: Mapping[str, Tensor], adapter_name: str, check_shapes: bool = True
) -> None:
    """Check every tensor of an adapter against the model, before a weight is touched."""
    configs: Any = model.peft_config
    base = configs[adapter_name].base_model_name_or_path or "that it was trained on"
    remedy = f"Load it onto the base model {base}, with the adapter_config.json saved with it."
    given = {_plain(name): tensor for name, tensor in weights.items()}
    required = _adapter_shapes(model, adapter_name)
    known = {_plain(name): tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()} | required
    if missing := [name for name in required if name not in given]:
        raise CheckpointError(f"the adapter holds no {_some(missing)}, which this model needs. {remedy}")
    if unknown := [name for name in given if name not in known]:
        raise CheckpointError(f"the adapter holds {_some(unknown)}, which this model does not have. {remedy}")
    for name, tensor in given.items() if check_shapes else ():
        if known[name] not in ((), (0,), tuple(tensor.shape)):  # (0,): ZeRO-3 keeps the weights elsewhere
            raise CheckpointError(
                f"{name} has the shape {list(tensor.shape)} in the adapter, and {list(known[name])} in this model. "
                f"{remedy}"
            )


def _adapter_shapes(model: nn.Module, adapter_name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of what an adapter has to hold, by the names that a file has."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraMoeLayer) and adapter_name in module.loramoe_experts:
            for part, weight in zip(PARTS, module.weights(adapter_name), strict=True):
                shapes[_plain(f"{name}.{EXPERTS}.{part}")] = tuple(weight.shape)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            state = module.state_dict(keep_vars=True)
            for in_file, in_module in module.adapter_state_dict_load_map(adapter_name).items():
                shapes[_plain(f"{name}.{in_file}")] = tuple(state[in_module].shape)
    return shapes


def _plain(name: str) -> str:
    """A name without the prefixes of PeftModel, FSDP, activation checkpointing and torch.compile."""
    for prefix in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."):
        name = name.replace(prefix, "")
    return name.removeprefix("base_model.model.")


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
