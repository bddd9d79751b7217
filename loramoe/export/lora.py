"""A plain LoRA in place of a mixture: the gates of each layer become constants, and the result is cut to a rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loramoe.export.adapter import ActiveAdapter

Factors = dict[str, tuple[Tensor, Tensor]]

# Fields that mean in LoRA what they mean in LoRAMoE.
SHARED_FIELDS: tuple[str, ...] = ("base_model_name_or_path", "exclude_modules", "layers_pattern", "layers_to_transform")
SHARED_FIELDS += ("modules_to_save", "revision", "target_modules", "task_type")


def plain_lora(adapter: ActiveAdapter, mean_gates: Mapping[str, Tensor], rank: int | None = None) -> Factors:
    """Returns A' [rank, D] and B' [F, rank] of each layer, whose gates g_e become constants ḡ_e.

        B' A' = (alpha / R) · Σ_e ḡ_e · B_e A_e

    has the rank E·R at most, which is the default. A lower rank is cut by SVD, to the nearest matrix in the Frobenius
    norm, as `peft.convert_to_lora` does. Layers of a lower rank than the highest are filled with zeros.
    """
    factors, dtypes = {}, {}
    for key, layer in adapter.layers.items():
        _, A, B = layer.weights(adapter.name)
        gates_K = mean_gates[key].to(B.device, torch.float32).repeat_interleave(layer.r[adapter.name])
        factors[key], dtypes[key] = (A.float(), B.float() * gates_K * layer.scaling[adapter.name]), A.dtype
    rank = rank or max(len(A) for A, _ in factors.values())
    cut = {key: _to_rank(A, B, rank) for key, (A, B) in factors.items()}
    return {key: (A.to(dtypes[key]), B.to(dtypes[key])) for key, (A, B) in cut.items()}


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
def as_plain_lora(adapter: ActiveAdapter, factors: Factors) -> Iterator[None]:
    """Makes the adapter compute what the LoRA does: a mixture of one expert of its rank, whose gate is always 1."""
    saved = []
    try:
        for key, (A, B) in factors.items():
            layer = adapter.layers[key]
            experts: Any = layer.loramoe_experts[adapter.name]
            saved.append((experts, experts.router, experts.A, experts.B))
            experts.router = nn.Parameter(experts.router.new_zeros(1, layer.in_features), False)
            experts.A, experts.B = nn.Parameter(A, False), nn.Parameter(B / layer.scaling[adapter.name], False)
        yield
    finally:
        for experts, *weights in saved:
            experts.router, experts.A, experts.B = weights


def save_lora(adapter: ActiveAdapter, factors: Factors, folder: Path) -> None:
    """Writes a LoRA into a folder as PEFT reads it, `modules_to_save` included."""
    rank = len(next(iter(factors.values()))[0])
    shared = {name: getattr(adapter.config, name) for name in SHARED_FIELDS}
    conv1d = any(isinstance(layer.base_layer, Conv1D) for layer in adapter.layers.values())
    LoraConfig(r=rank, lora_alpha=rank, fan_in_fan_out=conv1d, inference_mode=True, **shared).save_pretrained(folder)
    state = get_peft_model_state_dict(adapter.model, adapter_name=adapter.name)
    weights = {name: tensor for name, tensor in state.items() if ".loramoe_" not in name}
    for key, pair in factors.items():
        for part, tensor in zip("AB", pair, strict=True):
            weights[f"base_model.model.{key}.lora_{part}.weight"] = tensor
    # Cloned, because safetensors refuses tensors that share memory.
    cloned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    save_file(cloned, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
