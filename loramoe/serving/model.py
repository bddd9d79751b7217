"""The stand-alone models: LoraMoeLlamaConfig, LoraMoeLlamaModel, LoraMoeLlamaForCausalLM and so on for each family.

They compute what the PEFT model computes in evaluation mode, bit for bit, without PEFT. The weights of an adapted layer
are named `….gate_proj.base_layer.weight`, `….gate_proj.router`, `.A` and `.B`. Each configuration is that of its family
with a dict `loramoe`: `lora_nums`, the number of experts E, and `layers`, which gives for each adapted layer, by its
name in the base model (`layers.0.mlp.gate_proj`), the rank `r` of its experts and the `scaling` of their sum.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from loramoe.ops import IMPLEMENTATIONS
from loramoe.serving import CLASS_PREFIX, FAMILIES, TYPE_PREFIX


class LoraMoeLinear(nn.Module):
    """A linear layer with the experts and the router of one adapter, in evaluation.

    The base layer is a module of its own and only called, so vLLM can put its own linear layer there. Router and
    experts are float32 whatever the base model's dtype, as PEFT loads them.

    Args:
        base_layer: [..., D] → [..., F].
        lora_nums: Number of experts E.
        r: Rank R of each.
        scaling: alpha / R (or alpha / √R, rank-stabilised).
    """

    def __init__(self, base_layer: nn.Linear, lora_nums: int, r: int, scaling: float) -> None:
        super().__init__()
        D, F, K = base_layer.in_features, base_layer.out_features, lora_nums * r
        self.base_layer = base_layer
        self.scaling = scaling
        for name, shape in {"router": (lora_nums, D), "A": (K, D), "B": (F, K)}.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, device=base_layer.weight.device)))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As nn.Module's, but in float32: vLLM makes parameters anew in the model's dtype, and then loads into them."""
        super().register_parameter(name, None if param is None else nn.Parameter(param.float(), requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return the base layer's output [..., F] plus the mixture."""
        output = self.base_layer(x)
        y = output[0] if isinstance(output, tuple) else output  # a linear layer of vLLM returns its bias too
        add_mixture = IMPLEMENTATIONS["eager" if torch.compiler.is_compiling() else "fused"]
        return add_mixture(y, x, self.router, self.A, self.B, self.scaling)[0]


class _Adapted:
    """What the model classes of each family are extended by."""

    config_class: Any

    def __init__(self, config: Any) -> None:
        parent: Any = super()
        parent.__init__(config)
        model: Any = self
        trunk = getattr(model, model.base_model_prefix, model)
        for name, options in config.loramoe["layers"].items():
            layer = LoraMoeLinear(trunk.get_submodule(name), config.loramoe["lora_nums"], **options)
            trunk.set_submodule(name, layer)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As transformers' own; base weights may also have the names that they have in the base model's files."""
        config = config or cls.config_class.from_pretrained(name)
        names = {
            re.escape(f"{layer}.{part}"): f"{layer}.base_layer.{part}"
            for layer in config.loramoe["layers"]
            for part in ("weight", "bias")
        }
        parent: Any = super()
        return parent.from_pretrained(name, *args, config=config, key_mapping=names, **kwargs)


def _extend(name: str, *mixins: type, **attributes: Any) -> Any:
    """Makes a class of this module, by whose name vLLM's workers unpickle it."""
    attributes |= {"__module__": __name__, "__doc__": f"{name} with a router and experts at its adapted layers."}
    made = type(CLASS_PREFIX + name, (*mixins, getattr(transformers, name)), attributes)
    globals()[made.__name__] = made
    return made


for _family, (_config, _trunk, _causal_lm) in FAMILIES.items():
    _made = _extend(_config, model_type=TYPE_PREFIX + _family)
    AutoConfig.register(_made.model_type, _made, exist_ok=True)
    AutoModel.register(_made, _extend(_trunk, _Adapted, config_class=_made), exist_ok=True)
    AutoModelForCausalLM.register(_made, _extend(_causal_lm, _Adapted, config_class=_made), exist_ok=True)
