"""The LoRAMoE layer: N LoRA experts and a router in parallel to any linear layer, which is only called, never read.

    y = W0 x + (alpha / R) · Σ_e g_e · B_e A_e dropout(x),     g = softmax(x · W_router^T)

Because the base layer is only called, quantised layers, GPT-2's Conv1D and layers with a bias need no code of their
own. The layer knows nothing of task types: it adds its gates to the forward pass around it (see `forward_pass.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks

from loramoe.compat.peft import in_out_features
from loramoe.ops import IMPLEMENTATIONS
from loramoe.tuner.config import LoraMoeConfig
from loramoe.tuner.forward_pass import thread_state

MERGE_REFUSED = (
    "a LoRAMoE adapter cannot be merged: its router depends on the input, and no single weight computes that. Use the "
    "adapter unmerged, or unload() to get the base model back."
)


class Experts(nn.Module):
    """The experts and the router of one adapter at one layer, as one module that computes with its own weights.

    A sharding engine (FSDP, ZeRO-3) gathers a module's own weights while that module is called. So the whole mixture is
    one leaf module. It has an attribute `weight`, because PEFT's FSDP policy wraps leaf modules with a trained weight.

    Attributes:
        router: [E, D].
        A: The experts' down-projections, one below the other, [E·R, D].
        B: Their up-projections, side by side, [F, E·R].
        dropout: Probability of dropping an input of the experts.
    """

    def __init__(self, D: int, F: int, R: int, E: int, dropout: float) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.empty(E, D))
        self.A = nn.Parameter(torch.empty(E * R, D))
        self.B = nn.Parameter(torch.empty(F, E * R))
        self.dropout = dropout

    @property
    def weight(self) -> Tensor:
        """A, under the name by which PEFT recognises a leaf with trained weights."""
        return self.A

    def reset_parameters(self, zero_B: bool = True) -> None:
        """Draw A and the router Kaiming-uniform, as `nn.Linear` does; B is zero, or drawn likewise."""
        nn.init.zeros_(self.B)
        for weight in (self.A, self.router) if zero_B else (self.A, self.router, self.B):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    def forward(self, y: Tensor, x: Tensor, scaling: float, implementation: str) -> tuple[Tensor, Tensor]:
        """Return `y + scaling · Σ_e g_e · B_e A_e dropout(x)` and the gates.

        Args:
            y: Output of the base layer, [..., F]; may be written to.
            x: Its input, [..., D].
            scaling: alpha / R (or alpha / √R, rank-stabilised).
            implementation: One of `loramoe.ops.IMPLEMENTATIONS`.
        """
        # torch.compile makes kernels of its own, and has to see the single operations.
        add_mixture = IMPLEMENTATIONS["eager" if torch.compiler.is_compiling() else implementation]
        return add_mixture(y, x, self.router, self.A, self.B, scaling, self.dropout if self.training else 0.0)

    def extra_repr(self) -> str:
        """Return the shapes, in the letters of the house."""
        (E, D), (F, K) = self.router.shape, self.B.shape
        return f"D={D}, F={F}, R={K // E}, E={E}, dropout={self.dropout}"


class LoraMoeLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]  # peft is not typed
    """A linear layer with, for each adapter, E LoRA experts and their router.

    Args:
        base_layer: The linear layer to adapt, [..., D] → [..., F].
        adapter_name: Name of the first adapter.
        config: Its configuration.
        key: Name of the layer in the model.

    Attributes:
        implementation: Which of `loramoe.ops.IMPLEMENTATIONS` computes; see `use_implementation`.
        loramoe_experts: The Experts of each adapter.
    """

    adapter_layer_names = ("loramoe_experts",)
    other_param_names = ("lora_nums", "r", "lora_alpha", "scaling")
    cast_input_dtype_enabled = True  # a switch of PEFT's; the mixture takes an input of any dtype
    active_adapters: list[str]
    set_adapter: Callable[..., None]
    _move_adapter_to_device_of_base_layer: Callable[[str], None]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraMoeConfig, key: str = "") -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = in_out_features(base_layer)
        self.loramoe_experts = nn.ModuleDict()
        self.lora_nums: dict[str, int] = {}
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.key = key
        self.implementation = "fused"
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: LoraMoeConfig) -> None:
        """Add the experts and the router of one adapter, on the device and in the mode of the base layer."""
        r = config.rank_pattern.get(get_pattern_key(config.rank_pattern, self.key), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, self.key), config.lora_alpha)
        self.lora_nums[adapter_name] = config.lora_nums
        self.r[adapter_name] = r
        self.lora_alpha[adapter_name] = alpha
        self.scaling[adapter_name] = alpha / (math.sqrt(r) if config.use_rslora else r)
        experts = Experts(self.in_features, self.out_features, r, config.lora_nums, config.lora_dropout)
        experts.reset_parameters(zero_B=config.init_lora_weights)
        self.loramoe_experts[adapter_name] = experts
        self.training = self.base_layer.training
        self.loramoe_experts.train(self.training)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def weights(self, adapter_name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return router [E, D], A [E·R, D] and B [F, E·R] of one adapter."""
        experts: Any = self.loramoe_experts[adapter_name]
        return experts.router, experts.A, experts.B

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Refused, as is `unmerge`: the mixture depends on the input."""
        raise NotImplementedError(MERGE_REFUSED)

    unmerge = merge

    @property
    def adapters_in_use(self) -> list[str]:
        """Names of the adapters that this layer has, that are active, and not disabled."""
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.loramoe_experts]

    def forward(self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        """Return the base layer's output [..., F] plus the mixture of each active adapter.

        Args:
            x: Input [..., D].
            *args: Passed on to the base layer.
            adapter_names: For each sample of the batch the adapter that serves it, by PEFT's mixed batches.
            **kwargs: Passed on to the base layer.
        """
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if _global_forward_hooks or any(module._forward_hooks for module in self.base_layer.modules()):
            y = y.clone()  # a hook may have kept what would be written to
        if adapter_names is not None and not self.disable_adapters:
            return self._add_mixtures(adapter_names, y, x)
        for name in self.adapters_in_use:
            y = self._add_mixture(name, y, x)
        return y

    def _add_mixture(self, adapter_name: str, y: Tensor, x: Tensor) -> Tensor:
        experts: Any = self.loramoe_experts[adapter_name]
        y, gates = experts(y, x, self.scaling[adapter_name], self.implementation)
        if thread_state.passes:
            thread_state.passes[-1].add(adapter_name, self.key, gates, experts.router)
        return y

    def _add_mixtures(self, adapter_names: Sequence[str], y: Tensor, x: Tensor) -> Tensor:
        """The output with, in each row of the batch, the experts of that row's own adapter, if this layer has it."""
        y = y.clone()  # what the base layer returned may be kept elsewhere
        for name in self.loramoe_experts:
            rows = [row for row, its_name in enumerate(adapter_names) if its_name == name]
            if rows:
                y[rows] = self._add_mixture(name, y[rows], x[rows])
        return y
