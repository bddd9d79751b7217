"""The LoRAMoE layer: N LoRA experts and a router beside any linear, which is only ever called, never read.

    y = W0 x + (alpha / R) · Σ_e g_e · B_e A_e dropout(x),     g = softmax(x · W_router^T)

Because the base is only called, quantised linears, GPT-2's Conv1D and layers that carry a bias need no code of their
own. The layer knows nothing of task types: while a forward is watched (see `hooks.py`) it keeps its gates for the
watcher to take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks

from loramoe.compat import in_out_features, weight_of
from loramoe.config import LoraMoeConfig
from loramoe.mixture import IMPLEMENTATIONS, require_triton

MERGE_REFUSED = (
    "a LoRAMoE adapter cannot be merged: its experts are mixed by a router that looks at the input, and no single "
    "weight does that. Use the adapter as it is, or unload() to get the base model back."
)


class LoraMoeLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]  # peft is not typed
    """A linear with, for each adapter, E stacked LoRA experts and their router.

    Args:
        base_layer: The linear to adapt; any module [..., D] → [..., F] whose in- and out-features can be told.
        adapter_name: Name of the first adapter.
        config: Its configuration.
        key: Name of the linear in the model, for `rank_pattern` and `alpha_pattern`.

    Attributes:
        loramoe_A: For each adapter a Linear of weight [E·R, D]: the experts' down-projections, one below the other.
        loramoe_B: For each adapter a Linear of weight [F, E·R]: their up-projections, side by side.
        loramoe_router: For each adapter a Linear of weight [E, D].
        key: Name of the linear in the model.
        implementation: Which of `loramoe.mixture.IMPLEMENTATIONS` computes; see `use_implementation`.
        watched: While True, a forward leaves its gates in `gates`.
        gates: Gates [..., E] of the last watched forward, by adapter name; carry the gradient.

    Raises:
        ValueError: If the base layer is no linear.
    """

    adapter_layer_names = ("loramoe_A", "loramoe_B", "loramoe_router")
    other_param_names = ("loramoe_dropout", "lora_nums", "r", "lora_alpha", "scaling")
    cast_input_dtype_enabled = True  # a switch of PEFT's; the mixture takes an input of any dtype, either way
    # What BaseTunerLayer gives; peft is not typed.
    active_adapters: list[str]
    set_adapter: Callable[..., None]
    _move_adapter_to_device_of_base_layer: Callable[[str], None]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraMoeConfig, key: str = "") -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = in_out_features(base_layer)
        self.loramoe_A = nn.ModuleDict()
        self.loramoe_B = nn.ModuleDict()
        self.loramoe_router = nn.ModuleDict()
        self.loramoe_dropout = nn.ModuleDict()
        self.lora_nums: dict[str, int] = {}
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self.key = key
        self.implementation = "fused"
        self.watched = False
        self.gates: dict[str, Tensor] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, key)

    def update_layer(self, adapter_name: str, config: LoraMoeConfig, key: str = "") -> None:
        """Add the experts and the router of one adapter.

        Args:
            adapter_name: Name of the adapter.
            config: Its configuration.
            key: Name of this linear in the model, for `rank_pattern` and `alpha_pattern`.
        """
        r = config.rank_pattern.get(get_pattern_key(config.rank_pattern, key), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, key), config.lora_alpha)
        experts = config.lora_nums
        self.lora_nums[adapter_name] = experts
        self.r[adapter_name] = r
        self.lora_alpha[adapter_name] = alpha
        self.scaling[adapter_name] = alpha / (math.sqrt(r) if config.use_rslora else r)
        self.loramoe_dropout[adapter_name] = nn.Dropout(config.lora_dropout)
        self.loramoe_A[adapter_name] = nn.Linear(self.in_features, experts * r, bias=False)
        self.loramoe_B[adapter_name] = nn.Linear(experts * r, self.out_features, bias=False)
        self.loramoe_router[adapter_name] = nn.Linear(self.in_features, experts, bias=False)
        self.reset_parameters(adapter_name, config.init_lora_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)
        self.train(self.base_layer.training)  # a new Dropout is in training mode, whatever mode the model is in

    def reset_parameters(self, adapter_name: str, zero_B: bool = True) -> None:
        """Draw the weights of one adapter: A and the router Kaiming-uniform as nn.Linear's own, B zero.

        Args:
            adapter_name: Name of the adapter.
            zero_B: Whether B is zero, so that the adapted linear starts as the base; else B is drawn at random.
        """
        router, A, B = self.weights(adapter_name)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        nn.init.kaiming_uniform_(router, a=math.sqrt(5))
        if zero_B:
            nn.init.zeros_(B)
        else:
            nn.init.kaiming_uniform_(B, a=math.sqrt(5))

    def weights(self, adapter_name: str) -> tuple[Tensor, Tensor, Tensor]:
        """The three weights of one adapter.

        Args:
            adapter_name: Name of the adapter.

        Returns:
            Router [E, D], A [E·R, D], B [F, E·R].
        """
        router, A, B = self.loramoe_router[adapter_name], self.loramoe_A[adapter_name], self.loramoe_B[adapter_name]
        return weight_of(router), weight_of(A), weight_of(B)

    def forward(self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        """The base linear's output plus the mixture of every active adapter.

        Args:
            x: Input [..., D].
            *args: Passed on to the base linear.
            adapter_names: For a mixed batch, x being [B, ..., D]: the adapter of each of the B rows, in place of the
                active ones.
            **kwargs: Passed on to the base linear.

        Returns:
            Output [..., F], in the base linear's dtype.
        """
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self.base_layer._forward_hooks or _global_forward_hooks:  # one may have kept what would be written to
            y = y.clone()
        if adapter_names is not None and not self.disable_adapters:
            return self.add_mixtures(adapter_names, y, x)
        for name in self.adapters_at_work:
            y = self.add_mixture(name, y, x)
        return y

    def add_mixtures(self, adapter_names: Sequence[str], y: Tensor, x: Tensor) -> Tensor:
        """The output of a linear with, in each row of the batch, the experts of that row's own adapter.

        Args:
            adapter_names: Names of the B adapters; one that this linear does not have, such as `"__base__"`, adds none.
            y: Output of the linear, [B, ..., F]; is written to.
            x: Its input, [B, ..., D].

        Returns:
            Output [B, ..., F], in the dtype of y.
        """
        for name in self.loramoe_A:
            rows = [row for row, its_name in enumerate(adapter_names) if its_name == name]
            if rows:
                y[rows] = self.add_mixture(name, y[rows], x[rows])
        return y

    @property
    def adapters_at_work(self) -> list[str]:
        """Names of the adapters that this linear has, that are active, and not disabled."""
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.loramoe_A]

    def add_mixture(self, adapter_name: str, y: Tensor, x: Tensor) -> Tensor:
        """The output of a linear with the experts of one adapter: `y + (alpha / R) · Σ_e g_e · B_e A_e dropout(x)`.

        Args:
            adapter_name: Name of the adapter.
            y: Output of the linear, [..., F]; may be written to.
            x: Its input, [..., D].

        Returns:
            Output [..., F], in the dtype of y.

        Raises:
            ValueError: If this linear is called again while its gates of one forward are kept.
        """
        # torch.compile makes kernels of its own, and wants to see through the operation.
        add = IMPLEMENTATIONS["stacked" if torch.compiler.is_compiling() else self.implementation]
        dropout = cast(nn.Dropout, self.loramoe_dropout[adapter_name])
        p = dropout.p if dropout.training else 0.0
        y, gates = add(y, x, *self.weights(adapter_name), self.scaling[adapter_name], p)
        if self.watched:
            self._keep(adapter_name, gates)
        return y

    def _keep(self, adapter_name: str, gates: Tensor) -> None:
        """Keeps gates for the watcher, which takes them before the next forward, and before checkpointing's second."""
        if adapter_name in self.gates:
            raise ValueError(
                f"{self.key or 'a linear'} was called twice in one forward, as the layers that ALBERT shares are, and "
                "the gates of its first call would be lost: the constraint needs linears that see a token once. Name "
                "it in exclude_modules or choose other target_modules, or give no task_types and set blc_weight=0."
            )
        self.gates[adapter_name] = gates

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: the mixture depends on the input.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(MERGE_REFUSED)

    def unmerge(self) -> None:
        """Refused: nothing was ever merged.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(MERGE_REFUSED)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """PEFT's conversion to plain LoRA takes one weight difference a layer, which a mixture does not have."""
        return False

    def extra_repr(self) -> str:
        """Says which implementation computes."""
        return f"implementation={self.implementation!r}"

    def __repr__(self) -> str:
        return "loramoe." + super().__repr__()


def use_implementation(model: nn.Module, name: str) -> None:
    """Choose what computes the mixture, in every LoRAMoE layer of a model.

    `"fused"`, the default, is the fast one. `"stacked"` is plain PyTorch: for a backward of the backward, and for
    selective activation checkpointing or a base linear that keeps its own output for backward, as both forbid to write
    to that output. `"triton"` has kernels of its own for CUDA devices, whose speed is not measured yet. Whatever is
    chosen here, a compiled model computes `"stacked"`, of which torch.compile makes its own kernels.

    Args:
        model: A model with LoRAMoE layers, or one such layer.
        name: One of `loramoe.mixture.IMPLEMENTATIONS`.

    Raises:
        ValueError: If there is no such implementation, or no such layer.
        ImportError: If it is "triton", and triton is not installed.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {sorted(IMPLEMENTATIONS)}; got {name!r}.")
    if name == "triton":
        require_triton()
    layers = [module for module in model.modules() if isinstance(module, LoraMoeLayer)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no LoRAMoE layer. Add an adapter with get_peft_model first.")
    for layer in layers:
        layer.implementation = name
