"""What is compared. Every side adapts the *same* frozen weights: copies share them, so that all sides fit side by side.

| side      | what it is                                                                                      |
|-----------|-------------------------------------------------------------------------------------------------|
| `base`    | the frozen base, with a gradient to its input alone: the floor                                  |
| `lora`    | PEFT's plain LoRA at rank E·R: as many parameters as the experts, without a router              |
| `naive`   | the mixture as the released code computes it, expert by expert                                  |
| `eager`   | ours, plain PyTorch                                                                             |
| `fused`   | ours, one operation: the default                                                                |
| `xlora`   | PEFT's X-LoRA with E adapters of rank R, adapters trained too (whole models only)               |

All weights of an adapter have the base's dtype, on every side; B is drawn at random, so that nothing is zero.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    LoraMoeConfig,
    XLoraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from torch import Tensor, nn
from torch.nn import functional as F

import loramoe
from loramoe.ops import IMPLEMENTATIONS

MLP = ("gate_proj", "up_proj", "down_proj")
OURS = ("eager", "fused")


@dataclass(frozen=True)
class Mixture:
    """Hyper-parameters of the mixture that is measured: the library's defaults, which are the release's.

    Attributes:
        experts: Number of experts E.
        rank: Rank R of each.
        alpha: The sum of the experts is scaled by alpha / R.
        dropout: Dropout probability on the experts' input.
    """

    experts: int = 8
    rank: int = 4
    alpha: float = 32
    dropout: float = 0.0

    @property
    def scaling(self) -> float:
        """The factor alpha / R."""
        return self.alpha / self.rank

    def config(self, targets: tuple[str, ...]) -> LoraMoeConfig:
        """This mixture for our library, B drawn at random."""
        return LoraMoeConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_nums=self.experts,
            lora_dropout=self.dropout,
            target_modules=list(targets),
            init_lora_weights=False,
        )

    def equal_lora(self, targets: tuple[str, ...]) -> LoraConfig:
        """Plain LoRA of rank E·R with the same scaling, B drawn at random."""
        rank = self.experts * self.rank
        return LoraConfig(
            r=rank,
            lora_alpha=self.scaling * rank,
            lora_dropout=self.dropout,
            target_modules=list(targets),
            init_lora_weights=False,
        )


class NaiveMixture(nn.Module):
    """The mixture as the released code computes it, written anew from its description.

    One pair of linears and one dropout of x per expert, and for each a product as wide as the base's output, which the
    gate then scales and the sum takes up.

    Args:
        base: The frozen linear.
        mixture: Hyper-parameters.
    """

    def __init__(self, base: nn.Linear, mixture: Mixture) -> None:
        super().__init__()
        self.base = base
        self.scaling = mixture.scaling
        like = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
        experts, rank = range(mixture.experts), mixture.rank
        self.dropout = nn.Dropout(mixture.dropout) if mixture.dropout else nn.Identity()
        self.router = nn.Linear(base.in_features, mixture.experts, **like)
        self.A = nn.ModuleList(nn.Linear(base.in_features, rank, **like) for _ in experts)
        self.B = nn.ModuleList(nn.Linear(rank, base.out_features, **like) for _ in experts)

    def forward(self, x: Tensor) -> Tensor:
        """Output [..., F] of the linear and its experts for an input [..., D]."""
        result = self.base(x)
        gates = F.softmax(self.router(x), dim=-1, dtype=torch.float32).to(result.dtype)
        for e, (A, B) in enumerate(zip(self.A, self.B, strict=True)):
            result = result + gates[..., e, None] * B(A(self.dropout(x))) * self.scaling
        return result


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of a module whose parameters and buffers are those of the original.

    Args:
        model: The module.

    Returns:
        The copy; modules put into it do not appear in the original.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, memo=shared)


# --- one linear -------------------------------------------------------------------------------------------------------


def linear_side(side: str, base: nn.Linear, mixture: Mixture) -> nn.Module:
    """One side of the comparison of a single linear.

    Args:
        side: Name of the side.
        base: The frozen linear, which is left as it is.
        mixture: Hyper-parameters.

    Returns:
        A module [..., D] → [..., F] in training mode, whose adapter has the dtype of the base and random weights.

    Raises:
        ValueError: If there is no such side of a single linear.
    """
    if side == "base":
        return base
    if side == "naive":
        return NaiveMixture(shared_copy(base), mixture)
    if side not in ("lora", *IMPLEMENTATIONS):
        raise ValueError(f"a single linear has the sides base, lora, naive, eager and fused; got side={side!r}.")
    holder = nn.ModuleDict({"linear": shared_copy(base)})
    config = mixture.equal_lora(("linear",)) if side == "lora" else mixture.config(("linear",))
    inject_adapter_in_model(config, holder)
    adapted = holder["linear"].to(base.weight.dtype).train()
    if side in IMPLEMENTATIONS:
        loramoe.use_implementation(adapted, side)
    return adapted


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a side that are trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


# --- a whole model ----------------------------------------------------------------------------------------------------


def model_side(side: str, base: nn.Module, mixture: Mixture) -> nn.Module:
    """One side of the comparison of a whole Llama, its MLP's linears adapted.

    Args:
        side: Name of the side.
        base: The frozen model, which is left as it is.
        mixture: Hyper-parameters.

    Returns:
        A model in training mode, whose adapter has the dtype of the base and random weights.

    Raises:
        ValueError: If there is no such side.
    """
    dtype = next(base.parameters()).dtype
    model = _BUILDERS[side](shared_copy(base), mixture) if side in _BUILDERS else None
    if model is None:
        raise ValueError(f"a whole model has the sides {', '.join(_BUILDERS)}; got side={side!r}.")
    return model.to(dtype).train()


def _base(model: nn.Module, mixture: Mixture) -> nn.Module:
    """Its gradient begins where an adapter's first does, at the input of the first layer's MLP."""

    def require_grad(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = args
        return (x.detach().requires_grad_(torch.is_grad_enabled()), *rest)

    model.model.layers[0].mlp.register_forward_pre_hook(require_grad)
    return model


def _lora(model: nn.Module, mixture: Mixture) -> nn.Module:
    return get_peft_model(model, mixture.equal_lora(MLP))


def _naive(model: nn.Module, mixture: Mixture) -> nn.Module:
    """The mixture alone, without the constraint: in favour of this side."""
    for layer in model.model.layers:
        for name in MLP:
            setattr(layer.mlp, name, NaiveMixture(getattr(layer.mlp, name), mixture))
    return model


def _ours(implementation: str) -> Callable[[nn.Module, Mixture], nn.Module]:
    def build(model: nn.Module, mixture: Mixture) -> nn.Module:
        adapted = get_peft_model(model, mixture.config(MLP))
        loramoe.use_implementation(adapted, implementation)
        return adapted

    return build


def _xlora(model: nn.Module, mixture: Mixture) -> nn.Module:
    """PEFT's X-LoRA takes its experts from files, so they are written first; it refuses a model that caches keys."""
    model.config.use_cache = False
    expert = LoraConfig(
        r=mixture.rank,
        lora_alpha=mixture.alpha,
        lora_dropout=mixture.dropout,
        target_modules=list(MLP),
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with tempfile.TemporaryDirectory() as folder:
        files = {str(e): str(Path(folder) / str(e)) for e in range(mixture.experts)}
        for file in files.values():
            get_peft_model(shared_copy(model), expert).save_pretrained(file)
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=model.config.hidden_size,
            adapters=files,
            use_trainable_adapters=True,
        )
        return get_peft_model(model, config)


_BUILDERS: dict[str, Callable[[nn.Module, Mixture], nn.Module]] = {
    "base": _base,
    "lora": _lora,
    "naive": _naive,
    "eager": _ours("eager"),
    "fused": _ours("fused"),
    "xlora": _xlora,
}
MODEL_SIDES = tuple(_BUILDERS)


@dataclass(frozen=True)
class LlamaShape:
    """Size of a Llama with random weights; speed does not depend on what it has learnt."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocabulary: int
    positions: int

    def build(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The model, frozen, in training mode.

        Args:
            device: Where its weights are drawn.
            dtype: Their dtype.

        Returns:
            A LlamaForCausalLM with SDPA attention.
        """
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.positions,
            attn_implementation="sdpa",
        )
        with torch.device(device):
            model = LlamaForCausalLM(config)
        return model.to(dtype).requires_grad_(False).train()
