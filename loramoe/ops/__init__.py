"""The mixture of LoRA experts in parallel to one linear layer, as one operation.

    gates_BSE = softmax(x_BSD · W_router^T)                              dense: every token uses every expert
    output    = y + (alpha / R) · Σ_e g_e · B_e A_e dropout(x)           y is the output of the frozen linear layer

The equation is that of arXiv 2312.09979. `reference.py` is a loop over experts, with which tests compare. `eager.py` is
plain PyTorch with the experts stacked (A: [E·R, D], B: [F, E·R]): Σ_e g_e · B_e h_e = B · (g ∘ h). `fused.py`, the
default, is the same with a hand-written backward pass. Nothing here knows PEFT or transformers.
"""

from collections.abc import Callable

from torch import Tensor

from loramoe.ops.eager import add_eager, mixture, route
from loramoe.ops.fused import add_fused
from loramoe.ops.precision import without_autocast
from loramoe.ops.reference import mixture_reference

AddMixture = Callable[..., tuple[Tensor, Tensor]]  # with the arguments of `add_eager`
# A plain dict: torch.compile breaks the graph at a MappingProxyType.
IMPLEMENTATIONS: dict[str, AddMixture] = {"eager": add_eager, "fused": add_fused}

__all__ = ["IMPLEMENTATIONS", "add_eager", "add_fused", "mixture", "mixture_reference", "route", "without_autocast"]
