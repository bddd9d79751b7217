"""The stand-alone models: LoraMoeLlamaConfig, LoraMoeLlamaModel, LoraMoeLlamaForCausalLM, and so on for each family.

They compute bit for bit what the PEFT model computes in evaluation mode, without PEFT. An adapted layer has the weights
`….gate_proj.base_layer.weight`, `….gate_proj.router`, `.A` and `.B`. Each configuration is that of its family with a
dict `loramoe`: `lora_nums`, the number of experts E, and `layers`, which maps the name of each adapted layer in the
decoder (`layers.0.mlp.gate_proj`) to the rank `r` of its experts and the `scaling` of their sum.

Under tensor parallelism in vLLM, every rank holds router, A and B whole and uses the slice for its part of the base
layer: rows of B beside a column-parallel layer, columns of router and A beside a row-parallel one (docs/serving.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from loramoe.ops import IMPLEMENTATIONS
from loramoe.serving import CLASS_PREFIX, FAMILIES, TYPE_PREFIX

WEIGHTS = ("router", "A", "B")


def add_row_parallel(
    y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, scaling: float, all_reduce: Callable[[Tensor], Tensor]
) -> Tensor:
    """Returns `y + scaling · Σ_e g_e · B_e A_e x` where each of T ranks has only some features of x.

    The logits x · W_router^T and the hidden values A x are sums over features. So they are summed over the ranks first;
    the softmax comes after the sum. Shapes: y [..., F], summed over the ranks; x [..., D/T]; router [E, D/T];
    A [E·R, D/T]; B [F, E·R].
    """
    E = len(router)
    sums = all_reduce(F.linear(x.to(A.dtype), torch.cat([router, A])))
    gates = F.softmax(sums[..., :E], dim=-1).unsqueeze(-1)
    gated = (gates * sums[..., E:].reshape(*x.shape[:-1], E, -1)).flatten(-2)
    return (y + F.linear(gated, B) * scaling).to(y.dtype)


class LoraMoeLinear(nn.Module):
    """A linear layer with the experts and the router of one adapter, in evaluation.

    The base layer is a module of its own and is only called, so vLLM can replace it by its own linear layer. Router and
    experts are float32 whatever the dtype of the base model, as PEFT loads them.
    """

    router: Tensor
    A: Tensor
    B: Tensor

    def __init__(self, base_layer: nn.Linear, lora_nums: int, r: int, scaling: float) -> None:
        super().__init__()
        D, F, K = base_layer.in_features, base_layer.out_features, lora_nums * r
        self.base_layer = base_layer
        self.scaling = scaling
        for name, shape in zip(WEIGHTS, [(lora_nums, D), (K, D), (F, K)], strict=True):
            zeros = torch.zeros(shape, dtype=torch.float32, device=base_layer.weight.device)
            setattr(self, name, nn.Parameter(zeros, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the base layer's output [..., F] plus the mixture; under tensor parallelism, this rank's part."""
        output = self.base_layer(x)
        y = output[0] if isinstance(output, tuple) else output  # a linear layer of vLLM may return its bias too
        base: Any = self.base_layer
        if (width := x.shape[-1]) != self.router.shape[-1]:
            from vllm.distributed import tensor_model_parallel_all_reduce as all_reduce

            router, A = (weight.narrow(1, base.tp_rank * width, width) for weight in (self.router, self.A))
            return add_row_parallel(y, x, router, A, self.B, self.scaling, all_reduce)
        B = self.B if y.shape[-1] == len(self.B) else self.B.narrow(0, base.tp_rank * y.shape[-1], y.shape[-1])
        add_mixture = IMPLEMENTATIONS["eager" if torch.compiler.is_compiling() else "fused"]
        return add_mixture(y, x, self.router, self.A, B, self.scaling)[0]


class _WithExperts:
    """Adds experts to the model classes of each family."""

    config_class: Any
    base_model_prefix: str
    _keep_in_fp32_modules_strict = WEIGHTS  # read by from_pretrained and by vLLM

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # of the family's class
        decoder: Any = getattr(self, self.base_model_prefix, self)
        for name, options in config.loramoe["layers"].items():
            layer = LoraMoeLinear(decoder.get_submodule(name), config.loramoe["lora_nums"], **options)
            decoder.set_submodule(name, layer)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As in transformers; base weights may also have the names that they have in the base model's files."""
        config = config or cls.config_class.from_pretrained(name)
        names = {
            re.escape(f"{layer}.{part}"): f"{layer}.base_layer.{part}"
            for layer in config.loramoe["layers"]
            for part in ("weight", "bias")
        }
        return super().from_pretrained(name, *args, config=config, key_mapping=names, **kwargs)  # type: ignore[misc]


def _extend(name: str, *mixins: type, **attributes: Any) -> Any:
    """Makes a class of this module; vLLM's workers unpickle it by name."""
    attributes |= {"__module__": __name__, "__doc__": f"{name} with a router and experts at its adapted layers."}
    made = type(CLASS_PREFIX + name, (*mixins, getattr(transformers, name)), attributes)
    globals()[made.__name__] = made
    return made


for _family, (_config, _decoder, _causal_lm) in FAMILIES.items():
    _made = _extend(_config, model_type=TYPE_PREFIX + _family)
    AutoConfig.register(_made.model_type, _made, exist_ok=True)
    AutoModel.register(_made, _extend(_decoder, _WithExperts, config_class=_made), exist_ok=True)
    AutoModelForCausalLM.register(_made, _extend(_causal_lm, _WithExperts, config_class=_made), exist_ok=True)
