"""The adapter that is exported: found in its model, and observed in forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from loramoe.tuner.config import LoraMoeConfig
from loramoe.tuner.layer import LoraMoeLayer
from loramoe.utils import UsageError


class ExportError(UsageError):
    """An adapter or samples that cannot be exported; the message says why, and the fix."""


class ActiveAdapter(NamedTuple):
    """A LoRAMoE adapter, the PeftModel that has it, and its layers by their names in the base model."""

    model: Any
    name: str
    config: LoraMoeConfig
    layers: Mapping[str, LoraMoeLayer]


def get_active_adapter(model: Any) -> ActiveAdapter:
    """Finds the one active adapter of a PeftModel; ExportError if there is not one, of LoRAMoE and in memory."""
    active = model.active_adapters if isinstance(model, PeftModel) else ()
    kinds = {name: model.peft_config[name].peft_type.value for name in active}
    if list(kinds.values()) != ["LORAMOE"]:
        raise ExportError(f"expected a PeftModel with one active adapter, of type LORAMOE; got {kinds}. Load one.")
    (name,) = kinds
    modules = model.get_base_model().named_modules()
    layers = {key: each for key, each in modules if isinstance(each, LoraMoeLayer) and name in each.loramoe_experts}
    if any(layer.weights(name)[0].is_meta for layer in layers.values()):
        raise ExportError(f"weights of adapter {name!r} are offloaded. Load the model without offloading.")
    return ActiveAdapter(model, name, model.peft_config[name], layers)


def hidden_states(adapter: ActiveAdapter, batch: Mapping[str, Tensor]) -> Tensor:
    """Computes the last hidden states [B, S, D] of a batch: no logits, which take V / D times the memory."""
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {name: batch[name].to(adapter.model.device) for name in names if name in batch}
    found: Tensor = adapter.model.get_base_model().base_model(**inputs, use_cache=False).last_hidden_state
    return found


@contextmanager
def observe_layers(
    adapter: ActiveAdapter, batch: Mapping[str, Tensor], visit: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Calls `visit(layer, x [N, D], gates [N, E])` for each layer of a forward pass, of the N tokens but padding."""
    real_N = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).flatten().bool()
    seen: list[str] = []

    def hook(key: str, experts: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, gates = args[1].flatten(0, -2), output[1].flatten(0, -2)
        seen.append(key)
        if len(gates) == len(real_N):
            visit(key, x[real_N.to(x.device)], gates[real_N.to(x.device)])

    modules = {key: layer.loramoe_experts[adapter.name] for key, layer in adapter.layers.items()}
    handles = [module.register_forward_hook(partial(hook, key)) for key, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if odd := {key for key in adapter.layers if seen.count(key) != 1}:
        raise ExportError(f"{min(odd)} does not see each token once. Export an adapter without that layer.")


def mean_gates(
    adapter: ActiveAdapter, batches: Iterable[Mapping[str, Tensor]], progress: bool = True
) -> tuple[dict[str, Tensor], int]:
    """Averages the gates of each layer over all tokens: of all constants [E] the nearest in mean square.

    Prompts count too: the answer is computed from what they leave in the attention. Also returns the number of tokens.
    """
    sums = {key: torch.zeros(adapter.config.lora_nums + 1, dtype=torch.float64) for key in adapter.layers}

    def add(key: str, x: Tensor, gates: Tensor) -> None:
        sums[key] += torch.cat([gates.sum(0), gates.new_tensor([len(gates)])]).double().cpu()

    for batch in tqdm(batches, desc="mean gates", disable=not progress, leave=False):
        with observe_layers(adapter, batch, add):
            hidden_states(adapter, batch)
    return {key: total[:-1] / total[-1] for key, total in sums.items()}, int(next(iter(sums.values()))[-1])
