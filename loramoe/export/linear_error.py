"""How far each linear's export is from its mixture, given the same input: which linears need their router most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from loramoe.export.adapted import Adapted
from loramoe.export.gates import gates_kept, gates_of
from loramoe.ops import mixture


class LinearErrors:
    """Gathers √(E‖Δ(ḡ) − Δ(g)‖² / E‖Δ(g)‖²) of each linear, Δ(g) being what gates g have its experts add.

    Δ is linear in the gates, so the difference is the mixture with gates ḡ − g.

    Args:
        adapter: The adapter.
        mean_gates: Gates [E] of each adapted linear, ḡ.
    """

    def __init__(self, adapter: Adapted, mean_gates: Mapping[str, Tensor]) -> None:
        self._adapter = adapter
        self._mean_gates = mean_gates
        self._squares: dict[str, tuple[Tensor, Tensor]] = {}  # Σ‖Δ(ḡ) − Δ(g)‖² and Σ‖Δ(g)‖², float64

    @contextmanager
    def of_forward(self, real_BS: Tensor) -> Iterator[None]:
        """Within, a forward of the mixture adds to the errors.

        Args:
            real_BS: Which tokens of its batch are real, bool [B, S].

        Yields:
            Nothing.
        """
        with gates_kept(self._adapter) as kept:
            hooks = [
                layer.register_forward_hook(partial(self._add, kept, linear, real_BS))
                for linear, layer in self._adapter.layers.items()
            ]
            try:
                yield
            finally:
                for hook in hooks:
                    hook.remove()

    def _add(
        self,
        kept: Mapping[str, Tensor],
        linear: str,
        real_BS: Tensor,
        layer: nn.Module,
        args: tuple[Any, ...],
        output: Tensor,
    ) -> None:
        gates_NE = gates_of(kept, linear, real_BS)
        dtype, device = gates_NE.dtype, gates_NE.device
        x_ND = args[0].reshape(real_BS.numel(), -1)[real_BS.flatten().to(device)].to(dtype)
        _, A, B = (weight.to(dtype) for weight in self._adapter.layers[linear].weights(self._adapter.name))
        mean_E = self._mean_gates[linear].to(device, dtype)
        scaling = self._adapter.layers[linear].scaling[self._adapter.name]
        squares = [
            mixture(x_ND, gates, A, B, scaling).double().square().sum() for gates in (mean_E - gates_NE, gates_NE)
        ]
        error, whole = self._squares.get(linear, (0.0, 0.0))
        self._squares[linear] = (error + squares[0], whole + squares[1])

    def result(self) -> dict[str, float]:
        """The error of each linear so far; 0 where the experts add nothing."""
        return {
            linear: float((error / whole).sqrt()) if whole > 0 else 0.0
            for linear, (error, whole) in self._squares.items()
        }
