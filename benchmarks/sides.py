"""What is compared. All sides adapt the same frozen weights; copies share them.

| side    | what it is                                                                               |
|---------|------------------------------------------------------------------------------------------|
| `base`  | the frozen model, with a gradient to its input: the lower bound                          |
| `lora`  | PEFT's LoRA of rank E·R: as many parameters as the experts, without a router             |
| `naive` | the mixture as the original code computes it, expert by expert, without the constraint   |
| `eager` | ours, plain PyTorch                                                                      |
| `fused` | ours, one operation: the default                                                         |

All adapter weights have the dtype of the frozen weights. B is drawn at random, so that nothing is zero.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import chain

import torch
from peft import LoraConfig, LoraMoeConfig, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F

import loramoe
from loramoe.ops import mixture_reference, route

MLP = ["gate_proj", "up_proj", "down_proj"]
OURS = ("eager", "fused")
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # of |error| / |truth|; one rounding to bfloat16 is 2e-3


@dataclass(frozen=True)
class Mixture:
    """Hyper-parameters: those of the original code, without dropout."""

    experts: int = 8
    rank: int = 4
    alpha: float = 32
    dropout: float = 0.0

    def config(self, side: str, targets: list[str]) -> LoraConfig | LoraMoeConfig:
        """Return the configuration of our adapter, or of the LoRA with as many parameters."""
        rank = self.rank * (self.experts if side == "lora" else 1)
        options = {"r": rank, "lora_alpha": self.alpha / self.rank * rank, "lora_dropout": self.dropout}
        options |= {"target_modules": targets, "init_lora_weights": False}
        return LoraConfig(**options) if side == "lora" else LoraMoeConfig(lora_nums=self.experts, **options)


class NaiveMixture(nn.Module):
    """A loop over experts: one pair of linear layers, one dropout and one full-width product per expert."""

    def __init__(self, base: nn.Linear, mixture: Mixture) -> None:
        super().__init__()
        self.base, self.scaling = base, mixture.alpha / mixture.rank
        like = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
        self.dropout = nn.Dropout(mixture.dropout) if mixture.dropout else nn.Identity()
        self.router = nn.Linear(base.in_features, mixture.experts, **like)
        self.A = nn.ModuleList(nn.Linear(base.in_features, mixture.rank, **like) for _ in range(mixture.experts))
        self.B = nn.ModuleList(nn.Linear(mixture.rank, base.out_features, **like) for _ in range(mixture.experts))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [..., F] for an input [..., D]."""
        result = self.base(x)
        gates = F.softmax(self.router(x), dim=-1, dtype=torch.float32).to(result.dtype)
        for e, (A, B) in enumerate(zip(self.A, self.B, strict=True)):
            result = result + gates[..., e, None] * B(A(self.dropout(x))) * self.scaling
        return result

    def weights(self, adapter: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return router [E, D], A [E·R, D] and B [F, E·R], as our layer does."""
        A, B = torch.cat([a.weight for a in self.A]), torch.cat([b.weight for b in self.B], dim=1)
        return self.router.weight, A, B


def shared_copy(model: nn.Module) -> nn.Module:
    """Copy a module; the copy's parameters and buffers are those of the original."""
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def trained(module: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters of a side."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def linear_side(side: str, base: nn.Linear, mixture: Mixture) -> nn.Module:
    """Return a frozen linear layer with the adapter of one side, in training mode."""
    if side == "base":
        return base
    if side == "naive":
        return NaiveMixture(shared_copy(base), mixture)
    holder = nn.ModuleDict({"linear": shared_copy(base)})
    inject_adapter_in_model(mixture.config(side, ["linear"]), holder)
    adapted = holder["linear"].to(base.weight.dtype).train()
    if side in OURS:
        loramoe.use_implementation(adapted, side)
    return adapted


def check(base: nn.Linear, x: Tensor, dy: Tensor, mixture: Mixture) -> dict[str, float]:
    """Compare output and gradient of x of each side with the equation in float64, without dropout.

    Returns:
        The worst relative error of each side that mixes experts.

    Raises:
        AssertionError: If a side is wrong.
    """
    errors = {}
    for name in ("naive", *OURS):
        side = linear_side(name, base, Mixture(mixture.experts, mixture.rank, mixture.alpha))
        x64, dy64 = x.detach().double().requires_grad_(), dy.double()
        router, A, B = (weight.detach().double() for weight in side.weights("default"))
        y64 = F.linear(x64, base.weight.double())
        y64 = y64 + mixture_reference(x64, route(x64, router), A, B, mixture.alpha / mixture.rank)
        y = side(leaf := x.detach().requires_grad_())
        pairs = [(y, y64), *zip(torch.autograd.grad(y, leaf, dy), torch.autograd.grad(y64, x64, dy64), strict=True)]
        errors[name] = max(((mine.double() - truth).norm() / truth.norm()).item() for mine, truth in pairs)
        allowed = TOLERANCE[str(x.dtype).removeprefix("torch.")]
        if not errors[name] <= allowed:
            raise AssertionError(f"{name} has the relative error {errors[name]:.1e}, expected at most {allowed:.0e}.")
    return errors


@dataclass(frozen=True)
class LlamaShape:
    """Size of a Llama with random weights."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocabulary: int
    positions: int

    def build(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Return the frozen model in training mode."""
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.heads}
        sizes |= {"hidden_size": self.hidden, "intermediate_size": self.intermediate, "vocab_size": self.vocabulary}
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=self.positions))
        return model.to(dtype).requires_grad_(False).train()


def model_side(side: str, base: nn.Module, mixture: Mixture) -> nn.Module:
    """Return a frozen Llama with the adapter of one side at the linear layers of its MLPs, in training mode."""
    dtype, model = next(base.parameters()).dtype, shared_copy(base)
    if side == "base":  # its gradient starts where an adapter's first does
        model.model.layers[0].mlp.register_forward_pre_hook(_require_grad)
    elif side == "naive":
        for layer in model.model.layers:
            for name in MLP:
                setattr(layer.mlp, name, NaiveMixture(getattr(layer.mlp, name), mixture))
    else:
        model = get_peft_model(model, mixture.config(side, MLP))
        if side in OURS:
            loramoe.use_implementation(model, side)
    return model.to(dtype).train()


def _require_grad(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].detach().requires_grad_(torch.is_grad_enabled()), *args[1:])
