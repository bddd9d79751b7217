"""The mixture of LoRA experts in parallel to one linear layer, as one operation.

    gates_BSE = softmax(x_BSD · W_router^T)                              dense: every token uses every expert
    output    = y + (alpha / R) · Σ_e g_e · B_e A_e dropout(x)           y is the output of the frozen linear layer

Three implementations of this equation (arXiv 2312.09979), which tests hold equal:

- `reference.py`: a loop over experts with one full-width product each. Slow; tests compare with it.
- `eager.py`: plain PyTorch. The experts are stacked (A: [E·R, D], B: [F, E·R]), which leaves two skinny products, as a
  gate is a scalar per token and expert:  Σ_e g_e · B_e h_e = B · (g ∘ h).
- `fused.py`, the default: the same with a hand-written backward pass.

Pure functions of tensors: nothing here knows PEFT or transformers.
"""

from typing import Protocol

from torch import Tensor

from loramoe.ops.eager import add_eager, mixture, route
from loramoe.ops.fused import add_fused
from loramoe.ops.precision import autocast_is_on, without_autocast
from loramoe.ops.reference import mixture_reference


class AddMixture(Protocol):
    """The signature of every implementation."""

    def __call__(
        self, y: Tensor, x: Tensor, router: Tensor, A: Tensor, B: Tensor, scaling: float, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """`y + scaling · B (g ∘ A dropout(x))` and the gates; see `add_eager`."""


# A plain dict: torch.compile breaks the graph at a MappingProxyType.
IMPLEMENTATIONS: dict[str, AddMixture] = {"eager": add_eager, "fused": add_fused}

__all__ = [
    "IMPLEMENTATIONS",
    "AddMixture",
    "add_eager",
    "add_fused",
    "autocast_is_on",
    "mixture",
    "mixture_reference",
    "route",
    "without_autocast",
]
