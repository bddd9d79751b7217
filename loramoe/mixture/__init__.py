"""The mixture of LoRA experts beside one linear, as one operation.

The equation (arXiv 2312.09979), with `W0 x` left to the frozen linear:

    gates_BSE = softmax(x_BSD · W_router^T)                              dense: every token uses every expert
    delta     = (alpha / R) · Σ_e g_e · B_e A_e dropout(x)

Written as it reads, the sum is a Python loop that makes a full-width product per expert (`reference.py`). Stacked (A:
[E·R, D], B: [F, E·R]) it is two skinny products, because a gate is a scalar per token and expert, and may as well scale
the R numbers between A and B:  Σ_e g_e · B_e h_e = B · (g ∘ h)  (`stacked.py`). `fused.py` is the same with a backward
of its own, and is what runs unless another is asked for; `triton_fused.py` is that with Triton's kernels, for GPUs.

Pure functions of tensors: nothing here knows of PEFT or transformers.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from loramoe.mixture.fused import add_fused
from loramoe.mixture.precision import autocast_is_on, without_autocast
from loramoe.mixture.reference import mixture_reference
from loramoe.mixture.stacked import add_stacked, mixture, route
from loramoe.mixture.triton_fused import add_triton, require_triton


class AddMixture(Protocol):
    """What every implementation is."""

    def __call__(
        self, y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, scaling: float, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """`y + scaling · B (g ∘ A dropout(x))` and the gates; see `add_fused`."""


IMPLEMENTATIONS: Mapping[str, AddMixture] = MappingProxyType(
    {"fused": add_fused, "stacked": add_stacked, "triton": add_triton}
)

__all__ = [
    "IMPLEMENTATIONS",
    "AddMixture",
    "add_fused",
    "add_stacked",
    "add_triton",
    "autocast_is_on",
    "mixture",
    "mixture_reference",
    "require_triton",
    "route",
    "without_autocast",
]
