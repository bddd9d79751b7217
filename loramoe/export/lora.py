"""A plain LoRA in place of a mixture: the gates of each layer become constants, and the result is cut to a rank.

Every function takes a PeftModel, and works on its active LoRAMoE adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from loramoe.tuner.layer import LoraMoeLayer
from loramoe.tuner.state_dict import PARTS
from loramoe.utils import UsageError

Batch = Mapping[str, Tensor]
Factors = dict[str, tuple[Tensor, Tensor]]

# Fields that mean in LoRA what they mean in LoRAMoE.
SHARED_FIELDS: tuple[str, ...] = ("base_model_name_or_path", "exclude_modules", "layers_pattern", "layers_to_transform")
SHARED_FIELDS += ("modules_to_save", "revision", "target_modules", "task_type")


def adapter_layers(model: Any) -> dict[str, LoraMoeLayer]:
    """Finds the layers of the active adapter; UsageError unless that is a single one, of LoRAMoE."""
    active = model.active_adapters if isinstance(model, PeftModel) else ()
    kinds = {name: model.peft_config[name].peft_type.value for name in active}
    if list(kinds.values()) != ["LORAMOE"]:
        raise UsageError(f"expected a PeftModel with one active adapter, of type LORAMOE; got {kinds}. Load one.")
    modules = model.get_base_model().named_modules()
    return {key: m for key, m in modules if isinstance(m, LoraMoeLayer) and model.active_adapter in m.loramoe_experts}


def logits_of(model: Any, batch: Batch, positions: int | Tensor = 1) -> Tensor:
    """Computes the logits [B, P, V] of a batch at some positions, or at the last ones."""
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {name: batch[name].to(model.device) for name in names if name in batch}
    logits: Tensor = model.get_base_model()(**inputs, use_cache=False, logits_to_keep=positions).logits
    return logits


def visit_layers(
    model: Any, batches: Iterable[Batch], visit: Callable[[str, Tensor, Tensor], None], progress: str
) -> None:
    """Calls `visit(layer, x [N, D], gates [N, E])` for each batch and layer, of the N tokens but padding."""

    def hook(key: str, experts: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, gates = args[1].flatten(0, -2), output[1].flatten(0, -2)
        if len(gates) != len(real_N):
            raise UsageError(f"{key} does not see each token once. Export an adapter without that layer.")
        visit(key, x[real_N.to(x.device)], gates[real_N.to(x.device)])

    experts = {key: layer.loramoe_experts[model.active_adapter] for key, layer in adapter_layers(model).items()}
    handles = [each.register_forward_hook(partial(hook, key)) for key, each in experts.items()]
    try:
        for batch in tqdm(batches, desc=progress, disable=None, leave=False):
            real_N = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).flatten().bool()
            logits_of(model, batch)
    finally:
        for handle in handles:
            handle.remove()


def mean_gates(model: Any, batches: Iterable[Batch]) -> tuple[dict[str, Tensor], int]:
    """Averages the gates of each layer over all tokens: of all constants [E] the nearest in mean square.

    Prompts count too: the answer is computed from what they leave in the attention. Also returns the number of tokens.
    """
    sums: dict[str, Tensor] = {}

    def add(key: str, x: Tensor, gates: Tensor) -> None:
        total = torch.cat([gates.sum(0), gates.new_tensor([len(gates)])]).double().cpu()
        sums[key] = sums.get(key, 0) + total

    visit_layers(model, batches, add, "mean gates")
    if not sums:
        raise UsageError("there is no token to average the gates over. Give at least one sample.")
    return {key: total[:-1] / total[-1] for key, total in sums.items()}, int(next(iter(sums.values()))[-1])


def plain_lora(model: Any, gates: Mapping[str, Tensor], rank: int | None = None) -> Factors:
    """Returns A' [rank, D] and B' [F, rank] of each layer, whose gates g_e become constants ḡ_e.

        B' A' = (alpha / R) · Σ_e ḡ_e · B_e A_e

    has the rank E·R at most, which is the default. A lower rank is cut by SVD, to the nearest matrix in the Frobenius
    norm, as `peft.convert_to_lora` does. Layers of a lower rank than the highest are filled with zeros.
    """
    layers, name = adapter_layers(model), model.active_adapter
    rank = rank or max(len(layer.weights(name)[1]) for layer in layers.values())
    factors = {}
    for key, layer in layers.items():
        _, A, B = layer.weights(name)
        gates_K = gates[key].to(B.device, torch.float32).repeat_interleave(layer.r[name])
        A_cut, B_cut = _to_rank(A.float(), B.float() * gates_K * layer.scaling[name], rank)
        factors[key] = A_cut.to(A.dtype), B_cut.to(B.dtype)
    return factors


def _to_rank(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    if rank < len(A):
        # Of the small matrix between two orthonormal ones: of B A itself, [F, D], an SVD takes minutes a layer.
        Q_B, R_B = torch.linalg.qr(B)
        Q_A, R_A = torch.linalg.qr(A.T)
        U, S, V = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
        A, B = V[:rank] @ Q_A.T, Q_B @ (U[:, :rank] * S[:rank])
    missing = rank - len(A)
    return nn.functional.pad(A, (0, 0, 0, missing)), nn.functional.pad(B, (0, missing))


@contextmanager
def as_plain_lora(model: Any, factors: Factors) -> Iterator[None]:
    """Makes the adapter compute what the LoRA does: a mixture of one expert of its rank, whose gate is always 1."""
    name, saved = model.active_adapter, []
    try:
        for key, layer in adapter_layers(model).items():
            (A, B), experts = factors[key], layer.loramoe_experts[name]
            saved.append((experts, dict(experts.named_parameters())))
            for part, weight in zip(PARTS, (A.new_zeros(1, A.shape[1]), A, B / layer.scaling[name]), strict=True):
                setattr(experts, part, nn.Parameter(weight, requires_grad=False))
        yield
    finally:
        for experts, weights in saved:
            for part, weight in weights.items():
                setattr(experts, part, weight)


def save_lora(model: Any, factors: Factors, folder: Path) -> None:
    """Writes a LoRA into a folder as PEFT reads it, `modules_to_save` included."""
    rank = len(next(iter(factors.values()))[0])
    shared = {name: getattr(model.active_peft_config, name) for name in SHARED_FIELDS}
    LoraConfig(r=rank, lora_alpha=rank, inference_mode=True, **shared).save_pretrained(folder)
    state = get_peft_model_state_dict(model, adapter_name=model.active_adapter)
    weights = {name: tensor for name, tensor in state.items() if ".loramoe_" not in name}
    for key, (A, B) in factors.items():
        weights |= {f"base_model.model.{key}.lora_A.weight": A, f"base_model.model.{key}.lora_B.weight": B}
    # Cloned, because safetensors refuses tensors that share memory.
    cloned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    save_file(cloned, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
